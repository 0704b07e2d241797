"""Tiny checkpoints that serve in seconds, with the SmolLM2 tokenizer so that they take text.

`agreeing_*`: output projections scaled down, so that the next token depends almost only on the last
token, and a head that scores exactly that: drafts are accepted most of the time without training.
`random_*`: acceptance about 1; good for parity and refusals. `chain_target`: text that is known in
advance. All weights come from a fixed seed.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from fastmtp_sglang.head.checkpoint import save_head
from fastmtp_sglang.head.compatibility import mimo_name
from fastmtp_sglang.head.config import GEMMA, FastMTPConfig
from fastmtp_sglang.head.module import FastMTPHead
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint

SEED = 20250918
LOOPS = range(1500, 1512)
_CONFIGS = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    GEMMA: Gemma3TextConfig,
}
# Both kinds of layers, the one with a window last, and a scale of scores that is not the usual.
GEMMA_FIELDS = {
    "layer_types": ["full_attention", "sliding_attention"],
    "sliding_window": 8,
    "query_pre_attn_scalar": 24,
}


def target(directory: Path, family: str = "llama", *, output_scale: float = 1.0, **fields) -> Path:
    """A two-layer model of a family; small `output_scale` makes it depend on the last token.

    Gemma's embedding is its head too, so that with nothing between them each token would follow
    itself: there the last MLP is left as loud as it is.
    """
    torch.manual_seed(SEED)
    if family == GEMMA:
        fields = GEMMA_FIELDS | fields
    config = _CONFIGS[family](
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        # SGLang knows no other Gemma.
        tie_word_embeddings=family == GEMMA,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **fields,
    )
    model = AutoModelForCausalLM.from_config(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
                # It is these norms that say how loud the parts of Gemma's layers are; its scaled
                # embeddings are of size 0.4.
                is_output = family == GEMMA and ".post_" in name
                if is_output and name != "model.layers.1.post_feedforward_layernorm.weight":
                    parameter.copy_(0.4 * output_scale * (1 + parameter) - 1)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(output_scale)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.normal_(std=0.05 if family == GEMMA else 1.0)
    model.save_pretrained(directory)
    for file in SMOLLM2.checkpoint().glob("token*"):
        shutil.copy(file, directory)
    return directory


def chain_target(directory: Path, successor: torch.Tensor) -> Path:
    """A target that says `successor[x]` after the token x, int64 [49152], whatever came before."""
    target(directory, "qwen2", output_scale=0.01)
    tensors = load_file(directory / "model.safetensors")
    embedding = torch.nn.functional.normalize(tensors["model.embed_tokens.weight"], dim=1)
    head = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(SEED + 3)) / 100
    followed = successor >= 0
    head.index_add_(0, successor[followed], embedding[followed])  # tokens may share a successor
    tensors |= {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        "model.norm.weight": torch.ones(embedding.shape[1]),
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def add_loops(directory: Path) -> Path:
    """Make an `output_scale`d target stay among the tokens LOOPS once it is there.

    Each ranks them in its own order, so close together that penalties decide what comes next once
    the text repeats itself.
    """
    tensors = load_file(directory / "model.safetensors")
    loops = list(LOOPS)
    states = torch.nn.functional.rms_norm(tensors["model.embed_tokens.weight"][loops], (64,))
    states = states * tensors["model.norm.weight"]
    order = torch.rand(len(loops), len(loops), generator=torch.Generator().manual_seed(SEED + 4))
    rank = order.argsort(dim=1)
    # Above all other logits, which reach 35; the first one stands out enough for a noisy head.
    wanted = torch.where(rank == 0, 40.0, 38.8 - 0.2 * rank)
    tensors["lm_head.weight"][loops] = torch.linalg.pinv(states).mm(wanted).T
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def random_head(target_directory: Path, directory: Path, *, noise: float = 0.05) -> FastMTPHead:
    """A head with random weights and norms that are not 1; returns the torch module."""
    head = _new_head(target_directory)
    torch.manual_seed(SEED + 1)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=3 * noise)
    save_head(head, directory)
    return head


def agreeing_head(target_directory: Path, directory: Path, *, noise: float = 0.0) -> FastMTPHead:
    """A head that predicts what an `output_scale`d target says after the drafted token.

    `noise` disturbs its hidden state: more noise, less acceptance.
    """
    head = _new_head(target_directory)
    torch.manual_seed(SEED + 2)
    width = head.config.hidden_size
    tensors = load_file(target_directory / "model.safetensors")
    loudness = 1.0
    if head.config.family == GEMMA:
        # What follows a token is up to the last layer.
        last = "model.layers.1."
        layer = {n.removeprefix(last): t for n, t in tensors.items() if n.startswith(last)}
        head.block.load_state_dict(layer)
        loudness = tensors["model.embed_tokens.weight"].std() * width**0.5
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            if head.config.family == GEMMA:
                if not name.startswith("block."):
                    parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        # Reads the token, not the hidden state: x = token_layernorm(embedding).
        identity = loudness * torch.eye(width)
        disturbance = loudness * noise * torch.randn(width, width) / width**0.5
        head.input_proj.weight.copy_(torch.cat((disturbance, identity), dim=1))
        head.final_layernorm.weight.copy_(tensors["model.norm.weight"])
    save_head(head, directory)
    return head


def as_mimo(target_directory: Path, head: FastMTPHead, directory: Path) -> Path:
    """The same target in MiMo's layout, the head's tensors among its own."""
    shutil.copytree(target_directory, directory)
    tensors = load_file(directory / "model.safetensors")
    for name, tensor in head.state_dict().items():
        tensors[mimo_name(name)] = tensor.contiguous()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config |= {"architectures": ["MiMoForCausalLM"], "num_nextn_predict_layers": 1}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def _new_head(target_directory: Path) -> FastMTPHead:
    from transformers import AutoConfig, AutoTokenizer

    config = FastMTPConfig.from_target(
        AutoConfig.from_pretrained(target_directory),
        tokenizer_fingerprint=tokenizer_fingerprint(
            AutoTokenizer.from_pretrained(target_directory)
        ),
    )
    return FastMTPHead(config).float()
