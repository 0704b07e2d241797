"""Making a head for a target: the untrained start, written as a transformers checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import folder_at_once


def init_head(target: Path, out: Path, *, num_speculative_steps: int = 3) -> None:
    """Write an untrained head for a target.

    The block is a copy of the target's last decoder layer and `final_layernorm` of its final norm:
    both already turn a residual stream into what the lm_head reads. `input_proj` passes the hidden
    state on and adds the token's embedding (the identity beside the identity, each halved so that
    the sum keeps the scale), so the block starts from a stream that holds what the target knew at t
    and the token at t + 1. `hidden_layernorm` undoes the weight of the target's final norm, which
    the stream does not have yet where the copied layer reads it; `token_layernorm` is 1 (of Gemma's
    norms, which multiply by 1 + weight, all this is meant of that factor). Training
    then starts from a language model's layer instead of noise; untrained, a head drafts little.

    Args:
        target: directory of a checkpoint of one of `config.FAMILIES`, or a hub id that is cached.
        out: directory to create; it must not exist.
        num_speculative_steps: K that serving drafts with when nothing else is said.

    Raises:
        FastMTPError: `out` exists, K < 1, there is no such target, or its family has no FastMTP
            head.
    """
    if num_speculative_steps < 1:
        raise FastMTPError(
            f"num_speculative_steps {num_speculative_steps} must be at least 1: it is K, the "
            "number of tokens drafted per step."
        )
    if out.exists():
        raise FastMTPError(f"--out {out} exists already. Choose another directory or remove it.")

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from fastmtp_sglang.head.config import GEMMA, FastMTPConfig
    from fastmtp_sglang.head.module import FastMTPHead
    from fastmtp_sglang.models.config import checkpoint_config
    from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint

    try:
        target_config = checkpoint_config(target)
    except (OSError, ValueError) as error:
        raise FastMTPError(
            f"--target {target} cannot be read: {str(error).strip().splitlines()[0]} "
            "Give the directory of a checkpoint."
        ) from error
    config = FastMTPConfig.from_target(
        target_config,
        num_speculative_steps=num_speculative_steps,
        tokenizer_fingerprint=tokenizer_fingerprint(
            AutoTokenizer.from_pretrained(target, trust_remote_code=False)
        ),
    )
    model = AutoModelForCausalLM.from_pretrained(target, config=target_config, dtype="auto")
    head = FastMTPHead(config).to(model.dtype)
    head.block.load_state_dict(model.model.layers[-1].state_dict())
    head.final_layernorm.load_state_dict(model.model.norm.state_dict())
    plus = 1.0 if config.family == GEMMA else 0.0
    norm = model.model.norm.weight.detach().float() + plus
    scale = norm.abs().mean()
    # A channel that the norm all but shuts off must not be blown up in its place.
    undone = scale / norm.abs().clamp(min=0.1 * scale) * norm.sign()
    half = torch.eye(config.hidden_size, dtype=model.dtype) / 2
    with torch.no_grad():
        head.hidden_layernorm.weight.copy_(undone - plus)
        head.input_proj.weight.copy_(torch.cat((half, half), dim=1))
    save_head(head, out)


def save_head(head, out: Path, files: Mapping[str, bytes] = MappingProxyType({})) -> None:
    """Write a head's directory in one rename, so that no reader ever sees half of it.

    `files` go beside the weights, such as a model card; a name may be a path.
    """
    with folder_at_once(out) as scratch:
        head.save_pretrained(scratch)
        for name, content in files.items():
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
