"""A trained head as something to serve: a head directory, with its model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.checkpoint import save_head
from fastmtp_sglang.head.compatibility import check_compatible
from fastmtp_sglang.head.config import FastMTPConfig
from fastmtp_sglang.head.module import FastMTPHead
from fastmtp_sglang.training.card import model_card
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME
from fastmtp_sglang.vocabulary.fit import beside_head, load_for

# Recipe and figures of a run, beside the weights; the card is written from it.
RUN_FILE = "training.json"


def export_head(
    source: Path,
    out: Path,
    *,
    target: Path,
    vocabulary: Path | None = None,
    bfloat16: bool = False,
) -> None:
    """Write a head directory from a checkpoint of a run, or from another head directory.

    Args:
        source: has config.json and model.safetensors; its recipe and figures go along.
        out: directory to create; it must not exist.
        target: checkpoint directory that the head was trained for.
        vocabulary: a draft vocabulary file to put beside the weights; None for the source's.
        bfloat16: store the weights in bfloat16; else in the source's dtype.

    Raises:
        FastMTPError: `source` or `vocabulary` is none or not one of `target`, or `out` exists.
    """
    if not (source / "config.json").is_file():
        raise FastMTPError(f"{source} holds no config.json: give a checkpoint or head directory.")
    check_compatible(target, source)
    chosen = vocabulary or beside_head(source)
    if chosen is not None:
        load_for(chosen, target)
    head = FastMTPHead.from_pretrained(source, dtype=torch.bfloat16 if bfloat16 else "auto")
    recorded = source / RUN_FILE
    write_head(
        head.config,
        head.state_dict(),
        out,
        target=target,
        vocabulary=chosen,
        run=json.loads(recorded.read_text()) if recorded.is_file() else {},
    )


def write_head(
    config: FastMTPConfig,
    weights: Mapping[str, torch.Tensor],
    out: Path,
    *,
    target: Path,
    vocabulary: Path | None,
    run: Mapping[str, Any],
) -> None:
    """Write weights and configuration with card, recipe, figures and draft vocabulary.

    Args:
        config: of the head.
        weights: the state dict of a `FastMTPHead`, all of one dtype.
        out: directory to create; it must not exist.
        target: what the card calls the target.
        vocabulary: a draft vocabulary file that fits `target`, or None.
        run: `recipe` and `metrics` of the training run, or nothing.

    Raises:
        FastMTPError: `out` exists.
    """
    if out.exists():
        raise FastMTPError(f"--out {out} exists already. Choose another directory or remove it.")
    head = FastMTPHead(config).to(next(iter(weights.values())).dtype)
    head.load_state_dict(weights)
    card = model_card(head, target, run.get("recipe"), run.get("metrics"), vocabulary)
    files = {"README.md": card.encode()}
    if run:
        files[RUN_FILE] = f"{json.dumps(run, indent=2)}\n".encode()
    if vocabulary:
        files[FILE_NAME] = vocabulary.read_bytes()
    save_head(head, out, files)
