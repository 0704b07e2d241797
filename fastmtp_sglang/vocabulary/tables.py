"""What `fastmtp vocab` prints: a vocabulary's lists, and the sizes that a build has measured."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary


def say(console: Console, text: str) -> None:
    """Print a line as it is: paths may hold brackets, and are copied from the terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_summary(console: Console, vocabulary: DraftVocabulary) -> None:
    """Sizes, coverage and overlap of the lists of a vocabulary."""
    table = Table("list", "ids", "coverage", "with own tokens", "used for", "source")
    for language, ids in vocabulary.ids.items():
        share = vocabulary.coverage.get(language)
        detected = [name for name, listed in vocabulary.routes.items() if listed == language]
        table.add_row(
            language,
            f"{len(ids):,}",
            "not measured" if share is None else f"{100 * share:.2f} %",
            _own_coverage(share, vocabulary.own_coverage.get(language)),
            ", ".join(detected) or "requests that name it",
            Text(vocabulary.source.get(language, "")),
        )
    console.print(table)
    kept = vocabulary.own_tokens
    say(console, f"own tokens of a request: {f'up to {kept}' if kept else 'not drafted from'}")
    if len(vocabulary.ids) < 2:
        return
    overlap = Table("shared ids", *vocabulary.languages)
    sets = {language: set(ids.tolist()) for language, ids in vocabulary.ids.items()}
    for first in sets.values():
        overlap.add_row(
            vocabulary.languages[len(overlap.rows)],
            *(f"{len(first & second):,}" for second in sets.values()),
        )
    console.print(overlap)
    say(console, f"all lists together: {len(set().union(*sets.values())):,} ids")


def _own_coverage(share: float | None, with_own: float | None) -> str:
    """Held-out tokens that a list or the request's own tokens hold, and misses avoided so."""
    if share is None or with_own is None:
        return "not measured"
    avoided = (with_own - share) / (1 - share) if share < 1 else 0.0
    return f"{100 * with_own:.2f} %, {100 * avoided:.0f} % of misses avoided"


def print_sizes(console: Console, report: dict[str, Any]) -> None:
    """What each size would be, from `report.build_report`."""
    columns = ("held-out coverage", "with own tokens", "head read", "predicted speed", "")
    table = Table("list", "size", *columns)
    for language, measured in report["languages"].items():
        for row in measured["sizes"]:
            share, speed, read = row["coverage"], row["predicted_speedup"], row["head_bytes"]
            table.add_row(
                language,
                f"{row['size']:,}",
                "nothing held out" if share is None else f"{100 * share:.2f} %",
                "" if share is None else f"{100 * row['own_coverage']:.2f} %",
                "" if read is None else f"{read / 1e6:.1f} MB",
                "" if speed is None else f"{speed:.3f} x",
                "recommended" if row["size"] == measured["recommended"] else "",
            )
    console.print(table)
    if report["bytes"] is not None:
        say(
            console,
            "predicted speed: against drafting from the full vocabulary, from bytes read at batch "
            "1 and the acceptance of the FastMTP paper; it ranks sizes and is no measurement",
        )
