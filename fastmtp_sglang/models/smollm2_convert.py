"""SmolLM2-135M-Instruct from GGUF to an ordinary Hugging Face checkpoint: float32, safetensors.

Run as a process of its own, `python -m fastmtp_sglang.models.smollm2_convert GGUF OUT`: the caller
keeps neither torch's memory nor the noise of progress bars. Q4_1 blocks become float32 exactly;
nothing is rounded a second time.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def convert(gguf: Path, out: Path) -> None:
    """Write config, generation config, weights and tokenizer of `gguf` to the directory `out`."""
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )
    _write_model(model, out)
    _write_tokenizer(gguf, out, max_length=model.config.max_position_embeddings)


def _write_model(model: PreTrainedModel, out: Path) -> None:
    config = model.config
    # With these as they are SGLang would look for a GGUF file, and for no architecture at all.
    del config.quantization_config
    config.architectures = [type(model).__name__]
    config._model_name_or_path = (
        "HuggingFaceTB/SmolLM2-135M-Instruct"  # GGUF: a training run's name
    )
    # GGUF stores float32: 9.999999747378752e-06 is the shortest float32 spelling of 1e-05.
    config.rms_norm_eps = float(str(np.float32(config.rms_norm_eps)))
    config.save_pretrained(out)
    model.generation_config._from_model_config = False  # it stands on its own from here on
    model.generation_config.save_pretrained(out)

    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    weights = {name: w.contiguous() for name, w in model.state_dict().items() if name not in tied}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def _write_tokenizer(gguf: Path, out: Path, *, max_length: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, model_max_length=max_length, local_files_only=True
    )
    # transformers reads `tokenizer.ggml.pre = smollm` as plain byte level. SmolLM2 splits digits
    # off first, which changes how several spaces before a number are cut ("a  1").
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save_pretrained(out)
    # How this process found the files is no property of the tokenizer.
    path = out / "tokenizer_config.json"
    settings: dict[str, Any] = json.loads(path.read_text())
    for key in ("is_local", "local_files_only", "backend"):
        settings.pop(key, None)
    path.write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
