"""Near duplicates and quotations of evaluation prompts, in scripts with and without spaces.

Alone: pytest tests/distill/test_dedup.py
"""

import random

import pytest

from fastmtp_sglang.distill.dedup import Contamination, NearDuplicates, shingles

SEED = 20250918
LONG = "A train leaves the station at noon and travels north at sixty miles an hour for three hours"


def text(words: int, source: random.Random) -> list[str]:
    return [f"w{source.randrange(5000)}" for _ in range(words)]


def test_a_text_with_one_word_changed_is_seen_and_another_one_is_not():
    source = random.Random(SEED)
    near = NearDuplicates(0.7, SEED)
    for _ in range(50):
        words = text(120, source)
        assert not near.seen(" ".join(words))
        changed = [*words]
        changed[source.randrange(120)] = "else"
        assert near.seen(" ".join(changed))
        assert not near.seen(" ".join(text(120, source)))


def test_case_does_not_matter_and_a_short_text_counts_whole():
    near = NearDuplicates(0.8, SEED)
    assert not near.seen("short")
    assert near.seen("Short")
    assert not near.seen("shorter")


def test_half_a_text_is_another_text():
    words = text(100, random.Random(SEED))
    near = NearDuplicates(0.7, SEED)
    assert not near.seen(" ".join(words))
    assert not near.seen(" ".join(words[:50]))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("One two three.", {"one two three ."}),
        ("a b c d e f", {"a b c d e", "b c d e f"}),
        ("长城很长很长", {"长 城 很 长 很", "城 很 长 很 长"}),
        ("", {""}),
    ],
)
def test_shingles(said, expected):
    assert shingles(said) == expected


@pytest.mark.parametrize(
    ("said", "held"),
    [
        (LONG, True),
        (f"Solve this: {LONG.upper()}!", True),
        (" ".join(LONG.split()[2:16]), True),
        (" ".join(LONG.split()[2:14]), False),
        ("Who wrote Hamlet? Tell me.", True),
        ("I asked who wrote hamlet and why", False),
        ("请介绍一下长城的历史。", True),
        ("介绍一下长城", False),
        ("你好, 请介绍一下长城的历史好吗", True),
        ("Why", True),
        ("I see. Why? Tell me.", True),
        ("I know why birds sing", False),
        ("What is the capital of Spain?", False),
        ("?", False),
        ("", False),
    ],
)
def test_a_prompt_of_an_evaluation_is_found_where_it_is_quoted(said, held):
    found = Contamination([LONG, "Who wrote Hamlet?", "请介绍一下长城的历史", "Why?", "", "?!"])
    assert found.holds(said) == held
