"""The plots of a report, each as PNG and SVG; one that lacks its data is not drawn.

`draw_all` decides what there is to draw; a plot is a function from rows to a figure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastmtp_benchmarks.rows import Row
from fastmtp_sglang.errors import FastMTPError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150
# More areas over each other are mud.
_MOST_FILLED = 4
# A radar of one or two corners is a line.
_FEWEST_CORNERS = 3


def draw_all(rows: Sequence[Row], directory: Path) -> list[Path]:
    """Draw every plot that the rows have data for; returns the files.

    Raises FastMTPError without matplotlib.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise FastMTPError(
            "plots need matplotlib: run `pip install 'fastmtp-sglang[bench]'` and the same command "
            "again; what was measured is kept"
        ) from error
    figures: dict[str, Figure | None] = {}
    for level in dict.fromkeys(row.level for row in rows):
        here = [row for row in rows if row.level == level]
        suffix = level.replace(" ", "-")
        figures[f"speedup-{suffix}"] = radar(here)
        figures[f"acceptance-per-step-{suffix}"] = acceptance_per_step(here)
        figures[f"num-steps-{suffix}"] = over_num_steps(here)
        figures[f"vocabulary-size-{suffix}"] = over_vocabulary_size(here)
    figures["concurrency"] = over_concurrency(rows)
    written = []
    for name, figure in figures.items():
        if figure is None:
            continue
        directory.mkdir(parents=True, exist_ok=True)
        for suffix in ("png", "svg"):
            path = directory / f"{name}.{suffix}"
            figure.savefig(path, dpi=_DPI, bbox_inches="tight")
            written.append(path)
    return written


def radar(rows: Sequence[Row]) -> Figure | None:
    """Speedup per task, one line a configuration: the paper's Figure 2."""
    tasks = list(dict.fromkeys(row.task for row in rows if row.speedup is not None))
    configurations = {row.configuration for row in rows if row.speedup is not None}
    if len(tasks) < _FEWEST_CORNERS or len(configurations) < 2:
        return None
    figure, axes = _figure(projection="polar")
    angles = [2 * math.pi * index / len(tasks) for index in range(len(tasks))]
    for name, own in _by_configuration(rows).items():
        speedups = {row.task: row.speedup for row in own}
        if any(speedups.get(task) is None for task in tasks):
            continue
        values = [speedups[task] or 0.0 for task in tasks]
        (line,) = axes.plot([*angles, angles[0]], [*values, values[0]], label=name)
        if len(configurations) <= _MOST_FILLED:
            axes.fill(line.get_xdata(), line.get_ydata(), color=line.get_color(), alpha=0.08)
    axes.set_xticks(angles, tasks)
    axes.tick_params(axis="x", pad=14)  # clear of the outermost line
    axes.set_rlabel_position(math.degrees(angles[1]) / 2)  # type: ignore[attr-defined]
    axes.set_ylim(bottom=0)
    axes.set_title(f"Speedup, {rows[0].level}")
    axes.legend(loc="upper left", bbox_to_anchor=(1.2, 1.05))
    return figure


def acceptance_per_step(rows: Sequence[Row]) -> Figure | None:
    """Share of verifications that accept the draft of each step, mean over tasks."""
    series = {}
    for name, own in _by_configuration(rows).items():
        told = [row.acceptance_per_step for row in own if row.acceptance_per_step]
        if told:
            steps = max(map(len, told))
            padded = [shares + [0.0] * (steps - len(shares)) for shares in told]
            series[name] = [sum(shares) / len(told) for shares in zip(*padded, strict=True)]
    if not series:
        return None
    figure, axes = _figure()
    width = 0.8 / len(series)
    for index, (name, shares) in enumerate(series.items()):
        at = [step + (index - (len(series) - 1) / 2) * width for step in range(1, len(shares) + 1)]
        axes.bar(at, shares, width, label=name)
    axes.set_xticks(range(1, max(map(len, series.values())) + 1))
    axes.set(xlabel="draft step", ylabel="accepted share of verifications", ylim=(0, 1))
    axes.set_title(f"Acceptance per draft step, mean over tasks, {rows[0].level}")
    axes.legend()
    return figure


def over_num_steps(rows: Sequence[Row]) -> Figure | None:
    """Speedup and acceptance length of chains over K, a line per vocabulary, mean over tasks."""
    drafted = _chains(rows)
    if len({row.num_steps for row in drafted}) < 2:
        return None
    figure, speed = _figure()
    length = speed.twinx()
    for size, own in _grouped(drafted, "vocabulary_size").items():
        label = "all tokens" if size is None else f"{size:,} tokens"
        _line(speed, own, "num_steps", "speedup", f"speedup, {label}")
        _line(length, own, "num_steps", "acceptance_length", f"acceptance, {label}", "--")
    _baseline(speed)
    speed.set_xticks(sorted({row.num_steps for row in drafted if row.num_steps}))
    speed.set(xlabel="K, drafts per verification", ylabel="speedup")
    length.set(ylabel="acceptance length (dashed)")
    speed.set_title(f"Draft steps, mean over tasks, {rows[0].level}")
    speed.legend()
    return figure


def over_concurrency(rows: Sequence[Row]) -> Figure | None:
    """Throughput and speedup over the number of requests in flight, mean over tasks."""
    fixed = [row for row in rows if row.concurrency is not None]
    levels = sorted({row.concurrency for row in fixed if row.concurrency})
    if len(levels) < 2:
        return None
    figure, speed = _figure(columns=2)
    ratio = figure.axes[1]
    for name, own in _by_configuration(fixed).items():
        _line(speed, own, "concurrency", "tokens_per_second", name)
        _line(ratio, own, "concurrency", "speedup", name)
    _baseline(ratio)
    for axes, label in ((speed, "tokens per second, prefill included"), (ratio, "speedup")):
        axes.set_xscale("log", base=2)
        axes.set_xticks(levels, [str(level) for level in levels])
        axes.set(xlabel="conversations in flight", ylabel=label)
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.suptitle("Batch size, mean over tasks")
    return figure


def over_vocabulary_size(rows: Sequence[Row]) -> Figure | None:
    """Speedup of chains over the size of the draft vocabulary, a line per K, mean over tasks."""
    drafted = _chains(rows)
    sizes = sorted({row.vocabulary_size for row in drafted if row.vocabulary_size})
    if len(sizes) < 2:
        return None
    figure, axes = _figure()
    for steps, own in _grouped(drafted, "num_steps").items():
        _line(axes, own, "vocabulary_size", "speedup", f"K = {steps}")
        full = _means([row for row in own if row.vocabulary_size is None], "num_steps", "speedup")
        for speedup in full.values():
            color = axes.lines[-1].get_color() if axes.lines else None
            axes.axhline(speedup, color=color, linestyle=":", label=f"K = {steps}, all tokens")
    _baseline(axes)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.set(xlabel="tokens of the draft vocabulary", ylabel="speedup")
    axes.set_title(f"Draft vocabulary, mean over tasks, {rows[0].level}")
    axes.legend()
    return figure


def _figure(columns: int = 1, projection: str | None = None) -> tuple[Figure, Axes]:
    # Not pyplot, which looks for a display and keeps every figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5 * columns, 4.5))
    axes = [
        figure.add_subplot(1, columns, index + 1, projection=projection) for index in range(columns)
    ]
    for one in axes:
        one.grid(alpha=0.3)
    return figure, axes[0]


def _line(axes: Axes, rows: Sequence[Row], x: str, y: str, label: str, style: str = "-") -> None:
    points = _means(rows, x, y)
    if points:
        axes.plot(list(points), list(points.values()), style, marker="o", label=label)


def _baseline(axes: Axes) -> None:
    axes.axhline(1.0, color="gray", linewidth=0.8)


def _means(rows: Sequence[Row], x: str, y: str) -> dict[float, float]:
    """Return x -> mean of y over tasks, ascending; an x where a task lacks y is left out."""
    points = {}
    for at, own in sorted((k, v) for k, v in _grouped(rows, x).items() if k is not None):
        values = [getattr(row, y) for row in own]
        if all(value is not None for value in values):
            points[at] = sum(values) / len(values)
    return points


def _chains(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in which K says what was drafted."""
    return [row for row in rows if row.num_steps and row.top_k in (None, 1)]


def _by_configuration(rows: Sequence[Row]) -> dict[str, list[Row]]:
    return _grouped(rows, "configuration")


def _grouped(rows: Sequence[Row], field: str) -> dict:
    groups: dict = {}
    for row in rows:
        groups.setdefault(getattr(row, field), []).append(row)
    return groups
