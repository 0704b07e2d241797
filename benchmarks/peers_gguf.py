"""A Llama checkpoint as GGUF, for llama.cpp: weights and shapes, and no tokenizer.

Token ids go in and come out, so the file names no vocabulary. Norms stay float32, as llama.cpp
wants them; every matrix gets the type that is asked for, token embedding and lm_head included.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmtp_sglang.errors import FastMTPError

if TYPE_CHECKING:
    import torch

# What a matrix may be stored as: our name -> that of `gguf`.
TYPES = {"float32": "F32", "bfloat16": "BF16", "Q8_0": "Q8_0"}


def write_gguf(checkpoint: Path, path: Path, kind: str) -> None:
    """Write the checkpoint's weights to `path`.

    Args:
        checkpoint: Directory with `config.json` and safetensors of a Llama model.
        path: File to write.
        kind: One of `TYPES`.

    Raises:
        FastMTPError: `gguf` is not installed, or the model is none that this can write.
    """
    try:
        import gguf
    except ImportError as error:
        raise FastMTPError(
            "--systems llama.cpp: its file is made with gguf: run "
            "`pip install 'fastmtp-sglang[demo]'`, or leave llama.cpp out"
        ) from error
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    _refuse_unknown(config, checkpoint)
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    matrices = gguf.GGMLQuantizationType[TYPES[kind]]
    for name, weight in _weights(checkpoint):
        known = names.get_name(name, try_suffixes=(".weight",))
        if known is None:
            raise FastMTPError(
                f"--systems llama.cpp: {checkpoint} has the weight {name}, which no Llama has: "
                "leave llama.cpp out"
            )
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight = _interleaved(weight, config.head_dim)
        values = weight.float().numpy()
        if values.ndim == 1:
            writer.add_tensor(known, values)
        else:
            stored = gguf.quants.quantize(values, matrices)
            writer.add_tensor(known, stored, raw_dtype=matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _refuse_unknown(config: Any, checkpoint: Path) -> None:
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    biased = getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False)
    if config.model_type != "llama" or rope != "default" or biased:
        raise FastMTPError(
            f"--systems llama.cpp: {checkpoint} is a {config.model_type} with {rope} rope: only a "
            "plain Llama is written as GGUF here; leave llama.cpp out"
        )


def _describe(writer: Any, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")


def _weights(checkpoint: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                yield name, tensors.get_tensor(name)


def _interleaved(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Order the rows of each head as GGUF's Llama rotates them.

    It turns rows 2i and 2i + 1 together, the checkpoint rows i and i + head_dim / 2.
    """
    width = weight.shape[1]
    return weight.view(-1, 2, head_dim // 2, width).transpose(1, 2).reshape(-1, width)
