"""`summary.json`, `report.md` and plots out of the finished cells of a directory."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from fastmtp_benchmarks.bootstrap import Interval
from fastmtp_benchmarks.plots import draw_all
from fastmtp_benchmarks.rows import Row, make_row
from fastmtp_benchmarks.store import Cell, Store, ordered
from fastmtp_sglang.files.atomic import write_atomically, write_json

MEAN = "mean"
_NOTHING = "-"
# An idle machine stays below a few percent.
_STALLED = 0.15


def make_rows(cells: Sequence[Cell], baseline: str | None) -> list[Row]:
    """Return one row per cell; `baseline` is the configuration that speedups compare with."""
    bases = {
        (cell.info.task, cell.info.level): cell
        for cell in cells
        if cell.info.configuration == baseline
    }
    return [make_row(cell, bases.get((cell.info.task, cell.info.level))) for cell in cells]


def write_report(
    directory: Path,
    command: str,
    *,
    baseline: str | None = "baseline",
    configurations: Sequence[str] = (),
    tasks: Sequence[str] = (),
    plots: bool = True,
) -> list[Row]:
    """Write the report of all finished cells and return its rows.

    Args:
        directory: Of the benchmark.
        command: How the measurement was started, for the reader.
        baseline: Configuration that speedups compare with.
        configurations: Their order; others follow.
        tasks: Their order; others follow.
        plots: Whether to draw, which takes seconds.

    Raises:
        FastMTPError: There is no finished cell.
    """
    cells = Store(directory).cells()
    task_order = ordered([cell.info.task for cell in cells], tasks)
    configuration_order = ordered([cell.info.configuration for cell in cells], configurations)
    cells.sort(
        key=lambda cell: (
            cell.info.concurrency or 0,
            cell.info.request_rate or 0,
            configuration_order.index(cell.info.configuration),
            task_order.index(cell.info.task),
        )
    )
    rows = make_rows(cells, baseline)
    repeats = min(cell.info.settings.get("repeats", 1) for cell in cells)
    newest = max(cells, key=lambda cell: cell.info.environment.get("date", ""))
    summary = {
        "command": command,
        "environment": newest.info.environment,
        "baseline": baseline,
        "configurations": _configurations(cells, configuration_order),
        "rows": [row.model_dump(mode="json") for row in rows],
        "means": means(rows),
    }
    write_json(directory / "summary.json", summary)
    text = markdown(rows, newest.info.environment, command, repeats)
    write_atomically(directory / "report.md", text.encode())
    if plots:
        draw_all(rows, directory / "plots")
    return rows


def _configurations(cells: Sequence[Cell], order: Sequence[str]) -> dict[str, Any]:
    """Return per configuration what was served and where it was measured."""
    told: dict[str, Any] = {}
    for name in order:
        last = [cell.info for cell in cells if cell.info.configuration == name][-1]
        told[name] = {
            "settings": {k: v for k, v in last.settings.items() if k != "task"},
            "server": last.server,
            "environment": last.environment,
        }
    return told


def means(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return per configuration and level the means over tasks, as the paper's last column has them.

    A figure that one task lacks has no mean.
    """
    fields = ("acceptance_length", "tokens_per_second", "speedup", "decode_speedup")
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.configuration, row.level), []).append(row)
    return [
        {
            "configuration": group[0].configuration,
            "concurrency": group[0].concurrency,
            "request_rate": group[0].request_rate,
            "tasks": len(group),
            "failed": sum(row.failed for row in group),
        }
        | {field: _mean([getattr(row, field) for row in group]) for field in fields}
        for group in groups.values()
    ]


def markdown(
    rows: Sequence[Row], environment: dict[str, Any], command: str, repeats: int = 1
) -> str:
    """Return the report as Markdown: per level a table like the paper's, then the figures."""
    where = ", ".join([environment.get("cpu", ""), *environment.get("gpus", ())])
    versions = ", ".join(f"{n} {v}" for n, v in environment.get("versions", {}).items() if v)
    lines = ["# Benchmark", "", f"`{command}`", ""]
    lines += [f"{where}; {versions}; commit {environment.get('commit')}; {environment.get('date')}"]
    for level in dict.fromkeys(row.level for row in rows):
        here = [row for row in rows if row.level == level]
        lines += [
            "",
            f"## {level}",
            "",
            *_table(*paper_table(here)),
            "",
            *_table(*figures_table(here)),
        ]
    lines += [
        "",
        "speedup: tokens per second of a request over the baseline's for the same prompts, prefill "
        "included; decode: without prefill; tau: acceptance length, tokens per verification; "
        "brackets: 95 % bootstrap interval over conversations; -: not reported."
        + (f" Of {repeats} runs the fastest of each conversation counts." if repeats > 1 else ""),
        "",
        *_warnings(rows),
    ]
    return "\n".join(lines).rstrip() + "\n"


def paper_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return header and body of one level's table of speedup / acceptance length per task."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    body = []
    for name in dict.fromkeys(row.configuration for row in rows):
        own = {row.task: row for row in rows if row.configuration == name}
        cells = [_speed_and_length(own.get(task)) for task in tasks]
        if all(task in own for task in tasks):
            speedup = _mean([row.speedup for row in own.values()])
            length = _mean([row.acceptance_length for row in own.values()])
            cells.append(_pair(speedup, length))
        else:
            cells.append(_NOTHING)
        body.append([name, *cells])
    return ["configuration (speedup / tau)", *tasks, MEAN], body


def _speed_and_length(row: Row | None) -> str:
    if row is None:
        return _NOTHING
    flag = f" ({row.failed} failed)" if row.failed else ""
    return _pair(row.speedup, row.acceptance_length) + flag


def _pair(speedup: float | None, length: float | None) -> str:
    return f"{_show(speedup, '{:.2f}x')} / {_show(length, '{:.2f}')}"


_FIGURES: dict[str, Callable[[Row], str]] = {
    "task": lambda r: r.task,
    "configuration": lambda r: r.configuration,
    "answers": lambda r: f"{r.requests - r.failed} of {r.requests}",
    "identical": lambda r: _NOTHING if r.identical is None else f"{r.identical} of {r.pairs}",
    "tau": lambda r: _show(r.acceptance_length, "{:.2f}") + _bracket(r.acceptance_length_interval),
    "accepted per step": lambda r: _show_list(r.acceptance_per_step),
    "tokens/s": lambda r: _show(r.tokens_per_second, "{:.1f}"),
    "tokens/s, one request": lambda r: _show(r.request_tokens_per_second, "{:.1f}"),
    "decode only": lambda r: _show(r.decode_tokens_per_second, "{:.1f}"),
    "speedup": lambda r: _show(r.speedup, "{:.2f}x") + _bracket(r.speedup_interval),
    "decode speedup": lambda r: (
        _show(r.decode_speedup, "{:.2f}x") + _bracket(r.decode_speedup_interval)
    ),
    "first token ms p50 / p99": lambda r: _show_percentiles(r.first_token_milliseconds),
    "between tokens ms p50 / p99": lambda r: _show_percentiles(r.inter_token_milliseconds),
}
# What fits a terminal.
FEW_FIGURES = ("task", "identical", "tau", "tokens/s", "speedup", "decode speedup")


def figures_table(
    rows: Sequence[Row], names: Sequence[str] = tuple(_FIGURES)
) -> tuple[list[str], list[list[str]]]:
    """Return header and body of one level's table of figures."""
    by_task = sorted(rows, key=lambda row: [r.task for r in rows].index(row.task))
    return list(names), [[_FIGURES[name](row) for name in names] for row in by_task]


def _warnings(rows: Sequence[Row]) -> list[str]:
    """Return what a reader must know before believing the tables."""
    lines = []
    for row in rows:
        where = f"{row.configuration}, {row.task}, {row.level}"
        for reason, count in row.errors.items():
            lines.append(f"- {where}: {count} failed: {reason}")
        if row.speedup is not None and row.speedup < 1 and not _includes_one(row.speedup_interval):
            lines.append(f"- {where}: slower than the baseline, {row.speedup:.2f}x")
        if (row.stalled_share or 0) > _STALLED:
            lines.append(
                f"- {where}: {row.stalled_share:.0%} of the time between tokens passed in gaps of "
                "more than ten times the median: other programs (or, above concurrency 1, other "
                "requests' prompts) were in the way, and the speeds say little"
            )
        if row.conversations_left_out:
            lines.append(
                f"- {where}: {row.conversations_left_out} conversations left out by the time limit"
            )
        if row.lost_seconds:
            lines.append(
                f"- {where}: failed requests and pauses took {row.lost_seconds:.1f} s, which count "
                f"in tokens/s ({row.wall_seconds:.1f} s) and in no other speed"
            )
        if row.retried:
            lines.append(f"- {where}: {row.retried} answers needed more than one attempt")
        if row.counters_missing:
            lines.append(f"- {where}: {row.counters_missing} answers without speculation counters")
        if row.diverged:
            lines.append(
                f"- {where}: {row.diverged} turns not compared: their conversation differs before"
            )
        if not row.cache_flushed:
            lines.append(f"- {where}: the prefix cache could not be flushed and may have been warm")
        for found in row.differences:
            lines.append(
                f"- {where}: {found.prompt_id}, turn {found.turn}, differs from position "
                f"{found.position}"
            )
    return ["Not as it should be:", "", *lines] if lines else []


def _includes_one(interval: Interval | None) -> bool:
    return interval is not None and interval[0] <= 1 <= interval[1]


def _table(header: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _show(value: float | None, form: str) -> str:
    return _NOTHING if value is None else form.format(value)


def _show_list(values: Sequence[float] | None) -> str:
    return " / ".join(f"{value:.0%}" for value in values) if values else _NOTHING


def _show_percentiles(values: dict[str, float] | None) -> str:
    return _NOTHING if values is None else f"{values['p50']:.1f} / {values['p99']:.1f}"


def _bracket(interval: Interval | None) -> str:
    return "" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]"


def _mean(values: Sequence[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return round(statistics.fmean(told), 4) if told and len(told) == len(values) else None
