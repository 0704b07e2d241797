"""The languages of answers, token by token, decided by the same table as while serving."""

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from fastmtp_sglang.distill.records import Record
from fastmtp_sglang.vocabulary.target import Target

if TYPE_CHECKING:
    from rich.table import Table

UNDECIDED_NAME = "undecided"


def language_mix(records: Iterable[Record], target: Target) -> dict[str, int]:
    """Return the number of answer tokens per language, most frequent first.

    Tokens of answers whose scripts name no language count as "undecided".
    """
    import torch

    from fastmtp_sglang.vocabulary.languages import LANGUAGES, languages_of_text
    from fastmtp_sglang.vocabulary.scripts import build_token_scripts

    scripts = build_token_scripts(target.token_bytes, target.added_ids, target.vocab_size)
    names = (*LANGUAGES, UNDECIDED_NAME)  # UNDECIDED is -1
    totals: Counter[str] = Counter()
    for record in records:
        prompt = torch.tensor(record.prompt_ids, dtype=torch.int64)
        answer = torch.tensor(record.answer_ids, dtype=torch.int64)
        found, times = languages_of_text(scripts, answer, prompt).unique(return_counts=True)
        for index, count in zip(found.tolist(), times.tolist(), strict=True):
            totals[names[index]] += count
    return dict(totals.most_common())


def language_table(mix: dict[str, int]) -> "Table":
    """Return the mix as a table for people."""
    from rich.table import Table

    table = Table("language", title="languages of the answers")
    table.add_column("tokens", justify="right")
    table.add_column("share", justify="right")
    total = sum(mix.values())
    for name, tokens in mix.items():
        table.add_row(name, f"{tokens:,}", f"{100 * tokens / total:.1f} %")
    return table
