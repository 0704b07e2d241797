"""The languages of answers: every token once, by what serving would decide, most frequent first.

Alone: pytest tests/distill/test_language_mix.py
"""

import io
from collections import Counter

import pytest
import torch
from rich.console import Console

from fastmtp_sglang.distill.language_mix import language_mix, language_table
from fastmtp_sglang.distill.records import Message, Record, Sampling
from fastmtp_sglang.vocabulary.languages import LANGUAGES, languages_of_text
from fastmtp_sglang.vocabulary.scripts import build_token_scripts


@pytest.fixture
def record(tiny):
    def record(prompt: str, answer: str) -> Record:
        return Record(
            id="p/0/0/0", conversation="p/0/0", turn=0, source="p",
            messages=[Message(role="user", content=prompt)], prompt_ids=tiny.encode(prompt),
            answer_ids=tiny.encode(answer), answer=answer, finish_reason="stop",
            sampling=Sampling(temperature=0, top_k=-1, top_p=1, max_new_tokens=9), model="m",
        )  # fmt: skip

    return record


def test_every_token_counts_for_one_language(tiny, texts, record):
    records = [record("", texts[name]) for name in ("en", "ru", "ru", "zh")]
    mix = language_mix(records, tiny)
    assert sum(mix.values()) == sum(len(record.answer_ids) for record in records)
    assert list(mix.values()) == sorted(mix.values(), reverse=True)
    expected = Counter()
    scripts = build_token_scripts(tiny.token_bytes, tiny.added_ids, tiny.vocab_size)
    for one in records:
        found = languages_of_text(scripts, torch.tensor(one.answer_ids), torch.tensor([]).long())
        expected.update(LANGUAGES[index] if index >= 0 else "undecided" for index in found.tolist())
    assert mix == expected
    for name, text in (("ru", 2 * texts["ru"]), ("zh", texts["zh"])):
        assert mix[name] == pytest.approx(len(tiny.encode(text)), rel=0.1)


def test_what_its_script_does_not_tell_is_told_by_the_prompt(tiny, texts, record):
    numbers = "1 2 3 4 5 6 7 8 9 0"
    tokens = len(tiny.encode(numbers))
    assert language_mix([record(texts["ru"], numbers)], tiny) == {"ru": tokens}
    assert language_mix([record("", numbers)], tiny) == {"undecided": tokens}


def test_no_answers_have_no_languages(tiny, record):
    assert language_mix([], tiny) == {}
    assert language_mix([record("question", "")], tiny) == {}


def test_the_table_shows_shares_of_the_whole():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(language_table({"en": 3000, "zh": 1000, "undecided": 1}))
    rows = [line.split() for line in console.export_text().splitlines()]
    cells = [[cell for cell in row if cell != "│"] for row in rows if "%" in row]
    assert cells == [
        ["en", "3,000", "75.0", "%"],
        ["zh", "1,000", "25.0", "%"],
        ["undecided", "1", "0.0", "%"],
    ]
