"""What `peers` shows: a table, a bar plot, and the limit that memory sets."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastmtp_benchmarks.peers_rounds import PeerRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_DPI = 150
# Larger than any cache, smaller than what a small machine has.
_COPIED_BYTES = 256 * 1024**2


def table(rows: Sequence[PeerRow], title: str) -> Table:
    """Return the rows as people read them."""
    from rich.table import Table

    made = Table(title=title)
    for name in ("batch", "system", "dtype"):
        made.add_column(name)
    for name in ("tokens/s", "ratio", "quartiles", "accept", "same"):
        made.add_column(name, justify="right")
    for row in rows:
        ratio, quartiles = row.ratio_to_transformers, row.ratio_quartiles
        length, same = row.acceptance_length, row.identical_to_transformers
        made.add_row(
            str(row.batch),
            row.system,
            row.dtype,
            f"{row.tokens_per_second:.1f}",
            "-" if ratio is None else f"{ratio:.2f}x",
            "-" if quartiles is None else "{:.2f}-{:.2f}".format(*quartiles),
            "-" if length is None else f"{length:.2f}",
            "-" if same is None else "{}/{}".format(*same),
        )
    made.caption = (
        "ratio: tokens/s over those of transformers, median and quartiles over rounds; "
        "accept: tokens per verification; same: answers identical to those of transformers"
    )
    return made


def plot(rows: Sequence[PeerRow], title: str) -> Figure:
    """Draw tokens/s, a panel per batch size and a bar per system, its ratio at the end."""
    from matplotlib.figure import Figure

    batches = sorted({row.batch for row in rows})
    keys = list(dict.fromkeys((row.system, row.dtype) for row in rows))
    figure = Figure(figsize=(1.5 + 3.4 * len(batches), 0.9 + 0.42 * len(keys)))
    for index, batch in enumerate(batches):
        axes = figure.add_subplot(1, len(batches), index + 1)
        own = [row for row in rows if row.batch == batch]
        places = [keys.index((row.system, row.dtype)) for row in own]
        bars = axes.barh(
            places, [row.tokens_per_second for row in own], color=[f"C{place}" for place in places]
        )
        ratios = [row.ratio_to_transformers for row in own]
        labels = ["" if ratio is None else f" {ratio:.2f}x" for ratio in ratios]
        axes.bar_label(bars, labels, fontsize=8)
        axes.set_yticks(range(len(keys)), [" ".join(key) for key in keys] if index == 0 else [])
        axes.set_ylim(len(keys) - 0.4, -0.6)
        axes.margins(x=0.2)
        axes.set(title=f"batch {batch}", xlabel="tokens/s")
        axes.grid(alpha=0.3, axis="x")
    figure.suptitle(title)
    figure.tight_layout()
    return figure


def save_plot(rows: Sequence[PeerRow], title: str, path: Path) -> None:
    """Write `plot` as PNG."""
    plot(rows, title).savefig(path, dpi=_DPI, bbox_inches="tight")


def memory_limit(model: Path, dtype: str) -> dict[str, Any]:
    """Return how fast memory would let one request decode if reading the weights were all of it.

    Returns:
        "weight_bytes" that a step reads, "copy_bytes_per_second" read and written by a copy, and
        their quotient "tokens_per_second".
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    elements = sum(one.numel() for one in empty.parameters())  # a tied one counts once
    if not empty.config.tie_word_embeddings:
        elements -= empty.get_input_embeddings().weight.numel()  # one row of it is read
    weight_bytes = elements * getattr(torch, dtype).itemsize

    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(7):
        began = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began)
    bandwidth = 2 * _COPIED_BYTES / statistics.median(seconds[2:])
    return {
        "weight_bytes": weight_bytes,
        "copy_bytes_per_second": round(bandwidth),
        "tokens_per_second": round(bandwidth / weight_bytes, 2),
    }
