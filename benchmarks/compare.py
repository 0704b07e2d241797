"""Two finished benchmarks, or two configurations of one, on the prompts that both answered."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastmtp_benchmarks.rows import Row, make_row
from fastmtp_benchmarks.store import Cell, Store
from fastmtp_sglang.errors import FastMTPError

# Of the environment and the server: when these differ, speeds may differ for that reason alone.
_MUST_AGREE = ("cpu", "cpu_count", "gpus", "threads", "versions", "python")
_SETTINGS_MUST_AGREE = ("sampling", "api")


def compare(a: str, b: str) -> tuple[list[Row], list[str]]:
    """Compare B with A, its baseline.

    Args:
        a: `DIRECTORY` or `DIRECTORY:CONFIGURATION`.
        b: The same. Without configurations, those of the same name are compared.

    Returns:
        One row per configuration, task and level of both (B's figures, speedup over A), and what a
        reader must know: what differs beside the subject, what only one of them has.

    Raises:
        FastMTPError: A directory or configuration is missing, or they have nothing in common.
    """
    one, other = _load(a), _load(b)
    by_name = ":" not in _own_part(a) and ":" not in _own_part(b)
    for text, cells in ((a, one), (b, other)):
        names = dict.fromkeys(cell.info.configuration for cell in cells)
        if not by_name and len(names) > 1:
            raise FastMTPError(
                f"{text}: holds {', '.join(names)}: name the one to compare as {text}:CONFIGURATION"
            )
    bases = {_key(cell, by_name): cell for cell in one}
    pairs = [(bases[_key(c, by_name)], c) for c in other if _key(c, by_name) in bases]
    if not pairs:
        raise FastMTPError(
            f"{a} and {b} have no {'configuration, ' if by_name else ''}task and load level in "
            "common: name configurations as DIRECTORY:CONFIGURATION, or measure the same tasks"
        )
    notes = []
    for name in _MUST_AGREE:
        notes += _disagreement(name, [(x.info.environment, y.info.environment) for x, y in pairs])
    for name in _SETTINGS_MUST_AGREE:
        notes += _disagreement(name, [(x.info.settings, y.info.settings) for x, y in pairs])
    shared = {_key(cell, by_name) for _, cell in pairs}
    for text, cells in ((a, one), (b, other)):
        alone = [cell for cell in cells if _key(cell, by_name) not in shared]
        if alone:
            named = sorted({f"{cell.info.configuration}, {cell.info.task}" for cell in alone})
            notes.append(f"only in {text}: {'; '.join(named)}")
    return [make_row(cell, base) for base, cell in pairs], notes


def _own_part(text: str) -> str:
    """Return what may be DIRECTORY:CONFIGURATION, "" for a path that holds a colon itself."""
    return "" if Path(text).is_dir() else text


def _load(text: str) -> list[Cell]:
    directory, _, configuration = _own_part(text).rpartition(":")
    if not directory:
        return Store(Path(text)).cells()
    cells = Store(Path(directory)).cells()
    own = [cell for cell in cells if cell.info.configuration == configuration]
    if not own:
        there = ", ".join(dict.fromkeys(cell.info.configuration for cell in cells))
        raise FastMTPError(f"{text}: there is no {configuration}; there are {there}")
    return own


def _key(cell: Cell, by_name: bool) -> tuple[Any, ...]:
    info = cell.info
    return (info.configuration if by_name else None, info.task, info.level)


def _disagreement(name: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    for one, other in pairs:
        if one.get(name) != other.get(name):
            return [f"{name} differs: {one.get(name)!r} and {other.get(name)!r}"]
    return []
