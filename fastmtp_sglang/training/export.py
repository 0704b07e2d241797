"""A trained head as something to serve: a head directory, with its model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.checkpoint import save_head
from fastmtp_sglang.head.module import FastMTPHead
from fastmtp_sglang.training.card import model_card
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME

# Recipe and figures of a run, beside the weights; the card is written from it.
RUN_FILE = "training.json"


def export_head(
    source: Path,
    out: Path,
    *,
    target: Path,
    vocabulary: Path | None = None,
    bfloat16: bool = False,
    recipe: dict[str, Any] | None = None,
    metrics: dict[str, float] | None = None,
) -> None:
    """Write a head directory that `--speculative-draft-model-path` serves.

    Args:
        source: a checkpoint of a run, or a head directory.
        out: directory to create; it must not exist.
        target: what the card calls the target.
        vocabulary: a draft vocabulary file to put beside the weights; None for the source's.
        bfloat16: store half as many bytes; else the source's dtype.
        recipe: configuration of the run; None for what the source has in `training.json`.
        metrics: figures of the run; None for the source's.

    Raises:
        FastMTPError: `source` is no head, or `out` exists.
    """
    if out.exists():
        raise FastMTPError(f"--out {out} exists already. Choose another directory or remove it.")
    if not (source / "config.json").is_file():
        raise FastMTPError(f"{source} holds no config.json: give a checkpoint or head directory.")
    head = FastMTPHead.from_pretrained(source, dtype=torch.bfloat16 if bfloat16 else "auto")
    run: dict[str, Any] = {"recipe": recipe, "metrics": metrics}
    if (source / RUN_FILE).is_file():
        before = json.loads((source / RUN_FILE).read_text())
        run = {key: value if value is not None else before[key] for key, value in run.items()}
    beside = source / FILE_NAME
    listed = vocabulary or (beside if beside.is_file() else None)
    files = {
        "README.md": model_card(head, target, run["recipe"], run["metrics"], listed).encode(),
        RUN_FILE: f"{json.dumps(run, indent=2)}\n".encode(),
    }
    if listed:
        files[FILE_NAME] = listed.read_bytes()
    save_head(head, out, files)
