"""What makes an answer unfit to learn from, one rule at a time and in their order.

Alone: pytest tests/distill/test_quality.py
"""

import random

import numpy as np
import pytest

from fastmtp_sglang.distill.quality import (
    Limits,
    ends_in_loop,
    problem,
    reasoning_is_open,
    repeated_share,
)
from fastmtp_sglang.distill.records import Message, Record, Sampling

SEED = 20250918


@pytest.mark.parametrize(
    ("prompt", "answer", "is_open"),
    [
        ("", "plain", False),
        ("", "<think>so</think> yes", False),
        ("", "<think>so and", True),
        ("<think>\n", "so and", True),
        ("<think>\n", "so</think> yes", False),
        ("<think>\n\n</think>\n\n", "yes", False),
        ("", "[THINK]so", True),
        ("", "[THINK]so[/THINK]yes", False),
        ("", "</think> yes", False),
    ],
)
def test_reasoning(prompt, answer, is_open):
    assert reasoning_is_open(answer, prompt) is is_open


@pytest.mark.parametrize(
    ("passage", "times", "rest", "is_loop"),
    [
        (1, 60, 0, True),
        (1, 20, 0, False),  # a rule of dashes
        (20, 4, 0, True),
        (20, 3, 0, False),
        (20, 4, 7, True),  # cut in the middle of a passage
        (150, 5, 30, True),
    ],
)
def test_loops(passage, times, rest, is_loop):
    start = np.arange(1000, 1100)
    once = np.arange(passage)
    ids = np.concatenate([start, *[once] * times, once[:rest]])
    assert ends_in_loop(ids) is is_loop
    assert not ends_in_loop(np.concatenate([ids, np.arange(5000, 5010)]))


def test_repeated_share():
    assert repeated_share(np.arange(100), 8) == 0
    assert repeated_share(np.arange(5), 8) == 0
    ids = np.concatenate([np.arange(108), np.arange(108)])
    assert repeated_share(ids, 8) == pytest.approx(0.5, abs=0.03)


def loops(ids: list[int]) -> bool:
    """The definition: some passage of at most 200 tokens, 4 times or more and 48 tokens or more."""
    for period in range(1, min(200, len(ids) // 4) + 1):
        wanted = max(4 * period, 48)
        end = ids[-wanted:]
        if len(end) == wanted and all(a == b for a, b in zip(end, end[period:], strict=False)):
            return True
    return False


def test_loops_are_found_as_defined():
    """Passages of few distinct tokens, said again and again around the limits, and disturbed."""
    source = random.Random(SEED)
    found = {True: 0, False: 0}
    for _ in range(400):
        period = source.choice([1, 2, 3, 7, 11, 12, 13, 16, 40, 199, 200, 201])
        passage = [source.randrange(3) for _ in range(period)]
        length = max(1, source.choice([4 * period, 48]) + source.randrange(-3, 4))
        end = (passage * (length // period + 1))[-length:]
        if source.random() < 0.3:
            end[source.randrange(len(end))] = 9
        ids = [source.randrange(3) for _ in range(source.randrange(6))] + end
        expected = loops(ids)
        assert ends_in_loop(np.array(ids)) is expected, ids
        found[expected] += 1
    assert min(found.values()) > 100


def test_nothing_and_little_end_in_no_loop():
    for count in (0, 1, 47):
        assert not ends_in_loop(np.zeros(count, dtype=np.int64))
    assert ends_in_loop(np.zeros(48, dtype=np.int64))


def record(ids, answer="words", finish_reason="stop") -> Record:
    return Record(
        id="p/0/0/0", conversation="p/0/0", turn=0, source="p",
        messages=[Message(role="user", content="question")], prompt_ids=[1],
        answer_ids=list(ids), answer=answer, finish_reason=finish_reason,
        sampling=Sampling(temperature=0, top_k=-1, top_p=1, max_new_tokens=9), model="m",
    )  # fmt: skip


LIMITS = Limits(min_tokens=8, max_tokens=300, max_repetition=0.4)


@pytest.mark.parametrize(("count", "reason"), [(7, "too short"), (8, None), (300, None)])
def test_lengths_are_inclusive(count, reason):
    assert problem(record(range(count)), LIMITS) == reason
    assert problem(record(range(301)), LIMITS) == "too long"
    assert problem(record(range(301)), Limits()) is None


def test_the_stop_token_is_no_way_out_of_a_loop():
    """Of an answer that was cut the last token is text."""
    ids = [*range(100, 220), *[5] * 60, 2]
    assert problem(record(ids), LIMITS) == "ends in a loop"
    assert problem(record(ids, finish_reason="length"), LIMITS) is None


def test_repetition_counts_from_64_tokens_on_and_up_to_the_limit():
    twice = [*range(16), *range(16)]
    assert problem(record([*twice, *range(100, 131)]), Limits(max_repetition=0)) is None
    assert problem(record([*twice, *range(100, 132)]), Limits(max_repetition=0)) == (
        "repeated n-grams"
    )
    ids = np.array([*range(60), *range(60)])
    share = repeated_share(ids, 8)
    assert problem(record(ids), Limits(max_repetition=share)) is None
    assert problem(record(ids), Limits(max_repetition=share - 1e-9)) == "repeated n-grams"


def test_answers_that_were_cut_are_dropped_if_asked():
    cut = record(range(20), finish_reason="length")
    assert problem(cut, LIMITS) is None
    assert problem(cut, Limits(keep_truncated=False)) == "cut by length"
    assert problem(record(range(20)), Limits(keep_truncated=False)) is None


def test_reasoning_that_the_prompt_opened():
    assert problem(record(range(20)), LIMITS, "<think>\n") == "reasoning without an end"
    assert problem(record(range(20), "so</think> yes"), LIMITS, "<think>\n") is None


def test_the_first_reason_is_told():
    """One that is told for an answer with many: the report counts each answer once."""
    everything = record([5] * 400, "<think>", "length")
    strict = Limits(max_tokens=300, max_repetition=0, keep_truncated=False)
    assert problem(everything, strict) == "too long"
    assert problem(everything, Limits(max_repetition=0)) == "reasoning without an end"
