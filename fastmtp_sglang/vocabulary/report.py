"""The report of a build: one JSON-ready dictionary, and a plot drawn from nothing else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.counting import TokenCounts
from fastmtp_sglang.vocabulary.draft_cost import DraftCost
from fastmtp_sglang.vocabulary.ranking import RankedList, predicted_speedup
from fastmtp_sglang.vocabulary.target import Target

_CURVE_POINTS = 64


def build_report(
    target: Target,
    counts: TokenCounts,
    required: Mapping[str, set[int]],
    ranked: Mapping[str, RankedList],
    sizes: Sequence[int],
    cost: DraftCost | None,
    recommended: Mapping[str, int | None],
    written: Mapping[str, int],
    sources: Sequence[str],
    own_tokens: int,
) -> dict[str, Any]:
    """Collect what a build measured and decided.

    Args:
        target: The model.
        counts: As counted, before languages without a list were merged into others.
        required: Classes of always included ids.
        ranked: Per list.
        sizes: Candidate sizes that the tokenizer can fill.
        cost: None if the target's configuration does not give the shapes.
        recommended: Language -> size, None for the full vocabulary.
        written: Language -> size in the file.
        sources: As the command line named them.
        own_tokens: How many of a request's own are drafted from beside its list.
    """
    return {
        "model": str(target.path),
        "tokenizer_fingerprint": target.fingerprint,
        "vocab_size": target.vocab_size,
        "sources": list(sources),
        "own_tokens": own_tokens,
        "tokens": {
            "counted": {name: int(values.sum()) for name, values in counts.counted.items()},
            "held_out": {name: int(values.sum()) for name, values in counts.heldout.items()},
            "undecided": counts.undecided,
        },
        "always_included": {name: len(ids) for name, ids in required.items()}
        | {"together": len(set().union(*required.values()))},
        "languages": {
            name: {
                "documents": chosen.documents,
                "distinct_ids": int(np.count_nonzero(chosen.counts)),
                "sizes": [_size_row(chosen, size, cost, own_tokens) for size in sizes],
                "curve": _curve(chosen),
                "recommended": recommended.get(name),
                "written": written.get(name),
            }
            for name, chosen in ranked.items()
        },
        "bytes": None
        if cost is None
        else {
            "target": cost.target,
            "mtp_layer": cost.layer,
            "full_head": cost.row * cost.vocab_size,
            "assumed_acceptance": list(cost.acceptance),
        },
    }


def _size_row(
    chosen: RankedList, size: int, cost: DraftCost | None, own_tokens: int
) -> dict[str, Any]:
    return {
        "size": size,
        "coverage": chosen.coverage(size),
        "own_coverage": chosen.own_coverage(size),
        "head_bytes": None if cost is None else cost.row * (size + own_tokens),
        "predicted_speedup": None
        if cost is None
        else predicted_speedup(chosen, size, cost, own_tokens),
    }


def _curve(chosen: RankedList) -> list[list[float]]:
    """[size, coverage] at sizes evenly spaced on a logarithmic axis; empty if none was held out."""
    total = int(chosen.heldout.sum())
    if not total:
        return []
    covered = np.cumsum(chosen.heldout[chosen.unseen]) / total
    points = np.geomspace(max(1, chosen.required), len(chosen.ids), _CURVE_POINTS)
    return [[int(size), float(covered[int(size) - 1])] for size in np.unique(points.astype(int))]


def require_matplotlib() -> None:
    """Check before hours of counting that the plot can be drawn.

    Raises:
        FastMTPError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise FastMTPError(
            "--plot: needs matplotlib; install it with `pip install 'fastmtp-sglang[bench]'`, or "
            "give --no-plot."
        ) from error


def plot_report(report: Mapping[str, Any], path: Path) -> None:
    """Draw held-out coverage over list size, one line a language, as PNG.

    Args:
        report: From `build_report`, or read back from its JSON.
        path: Written or replaced.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, language in report["languages"].items():
        if not language["curve"]:
            continue
        sizes, shares = zip(*language["curve"], strict=True)
        (line,) = axes.plot(sizes, [100 * share for share in shares], label=name)
        rows = [row for row in language["sizes"] if row["coverage"] is not None]
        axes.plot(
            [row["size"] for row in rows],
            [100 * row["coverage"] for row in rows],
            linestyle="",
            marker="o",
            color=line.get_color(),
        )
    axes.set_xscale("log", base=2)
    ticks = [512 * 2**power for power in range(12) if 512 * 2**power <= report["vocab_size"]]
    axes.set_xticks(ticks, [f"{tick // 1024}k" if tick >= 1024 else str(tick) for tick in ticks])
    axes.set_xlabel("ids in the list")
    axes.set_ylabel("held-out tokens in the list, %")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()
    figure.savefig(path, dpi=150, format="png")
