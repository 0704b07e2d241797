"""The model card of a head: what it drafts for, how it was trained, what it reached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from fastmtp_sglang.head.module import FastMTPHead
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME


def model_card(
    head: FastMTPHead,
    target: Path | str,
    recipe: dict[str, Any] | None,
    metrics: dict[str, float] | None,
    vocabulary: Path | None,
) -> str:
    """Return a README.md; figures and recipe are left out where they are not known."""
    config = head.config
    millions = sum(parameter.numel() for parameter in head.parameters()) / 1e6
    name = Path(os.path.abspath(target)).name  # of `.` too
    lines = [
        "---",
        "library_name: fastmtp-sglang",
        "tags: [speculative-decoding, multi-token-prediction, fastmtp, sglang]",
        "---",
        "",
        f"# FastMTP head for {name}",
        "",
        f"One MTP head with shared weights, applied up to {config.num_speculative_steps} times per "
        f"draft (FastMTP, arXiv 2509.18362): {millions:.1f} M parameters, {head.dtype}, a "
        f"{config.family} block of hidden size {config.hidden_size}. It drafts only for this "
        "target; embedding and output layer are the target's.",
        "",
        "```bash",
        f"fastmtp serve TARGET --draft {name}-head",
        "```",
        "",
    ]
    if vocabulary:
        lines += [
            f"`{FILE_NAME}` is its draft vocabulary: serving drafts from those tokens.",
            "",
        ]
    if metrics:
        lines += ["## Figures", "", *_figures(metrics), ""]
    if recipe:
        text = yaml.safe_dump(recipe, sort_keys=False).strip()
        lines += ["## Recipe", "", "`fastmtp train` with", "", "```yaml", text, "```", ""]
    return "\n".join(lines)


def _figures(metrics: dict[str, float]) -> list[str]:
    """A table of the steps, from the names that `run.validate` gives its metrics."""
    values = {name.removeprefix("eval_"): value for name, value in metrics.items()}
    steps = [k for k in range(1, 100) if f"accepted_{k}" in values]
    rows = {
        "teacher-forced accuracy on held-out text": "teacher_",
        "accepted, full vocabulary": "accepted_",
        "accepted, draft vocabulary": "draft_accepted_",
    }
    lines = [
        "Free-running acceptance is greedy, on held-out prompts: the share of drafts whose first k "
        "tokens the target accepts. The length counts the target's own token.",
        "",
        "| | " + " | ".join(f"step {k}" for k in steps) + " | acceptance length |",
        "|---|" + "---|" * (len(steps) + 1),
    ]
    for label, prefix in rows.items():
        if f"{prefix}{steps[0]}" not in values:
            continue
        cells = [f"{values[f'{prefix}{k}']:.1%}" for k in steps]
        length = values.get(f"{prefix.removesuffix('accepted_')}acceptance_length")
        is_walk = prefix.endswith("accepted_") and length is not None
        lines.append(f"| {label} | {' | '.join(cells)} | {f'{length:.2f}' if is_walk else ''} |")
    if "drafts" in values:
        lines += ["", f"Measured on {values['drafts']:.0f} drafts."]
    return lines
