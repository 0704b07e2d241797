"""Where the head starts from: the target's native MTP layer, an earlier head, or scratch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.checkpoint import init_head, save_head
from fastmtp_sglang.head.compatibility import check_compatible, mimo_name
from fastmtp_sglang.head.config import FastMTPConfig
from fastmtp_sglang.training.model import ChainHead
from fastmtp_sglang.training.target import load_tensors, target_config


def starting_head(
    start: str,
    target: Path,
    num_steps: int,
    folder: Path,
    fit: Callable[[ChainHead], None] | None = None,
) -> ChainHead:
    """Load the head that training begins with, in float32 (the optimizer's master weights).

    Args:
        start: `scratch`, `fitted`, `native` or a head directory.
        target: checkpoint directory of the target.
        num_steps: K, written into the head's configuration.
        folder: where a head from scratch is written, if it is not there yet: by the first process
            of several, for all of them (transformers saves nothing in the others).
        fit: what makes a fitted head of one from scratch, in place.

    Raises:
        FastMTPError: the target has no native layer of MiMo's layout, or the head does not fit.
    """
    if start == "native":
        head = native_head(target)
    elif start in ("scratch", "fitted"):
        if not folder.exists() and start == "fitted":
            assert fit is not None
            with tempfile.TemporaryDirectory() as scratch:
                init_head(target, Path(scratch, "head"), num_speculative_steps=num_steps)
                head = ChainHead.from_pretrained(Path(scratch, "head"), dtype=torch.float32)
            fit(head)
            save_head(head, folder)
        elif not folder.exists():
            init_head(target, folder, num_speculative_steps=num_steps)
        head = ChainHead.from_pretrained(folder, dtype=torch.float32)
    else:
        if not (Path(start) / "config.json").is_file():
            raise FastMTPError(
                f"head.start {start} is neither `scratch`, `fitted`, `native` nor a head directory."
            )
        check_compatible(target, start)
        head = ChainHead.from_pretrained(start, dtype=torch.float32)
    head.config.num_speculative_steps = num_steps
    return head.train()


def native_head(target: Path) -> ChainHead:
    """Read the MTP layer `model.mtp_layers.0.*` of a target in MiMo's layout."""
    from transformers import AutoTokenizer

    from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint

    config = target_config(target)
    if config.architectures != ["MiMoForCausalLM"]:
        raise FastMTPError(
            f"head.start native: {target} ({config.architectures[0]}) has no MTP layer of MiMo's "
            "layout. Use `scratch`, or a head directory."
        )
    fingerprint = tokenizer_fingerprint(
        AutoTokenizer.from_pretrained(target, trust_remote_code=False)
    )
    head = ChainHead(FastMTPConfig.from_target(config, tokenizer_fingerprint=fingerprint)).float()
    names = list(head.state_dict())
    tensors = load_tensors(target, [mimo_name(name) for name in names])
    head.load_state_dict({name: tensors[mimo_name(name)] for name in names})
    return head
