"""Rounds of fake systems, and rows from measurements made by hand.

Alone: pytest tests/benchmarks/test_peers_rounds.py
"""

import json

import pytest

from fastmtp_benchmarks.peers_rounds import Blocks, Measurement, identical, make_rows, run_rounds
from fastmtp_benchmarks.peers_systems import Answers, System
from fastmtp_sglang.errors import FastMTPError

PROMPTS = [[n, n + 1] for n in range(9)]


class Fake(System):
    """Answers with the prompt's first id, repeated, and notes what it was asked."""

    def __init__(self, name, asked, *, dtype="float32", largest=None, extra=0):
        super().__init__(name, dtype)
        self.largest_batch, self.asked, self.extra = largest, asked, extra

    def _start(self, stack): ...

    def answer(self, prompts, tokens):
        self.asked.append((self.name, len(prompts), tokens))
        return Answers([ids[:1] * (tokens + self.extra) for ids in prompts], 4, 3)


def run(systems, blocks, rounds=2, sizes=(1, 4)):
    said = []
    run_rounds(
        systems,
        PROMPTS,
        batch_sizes=sizes,
        rounds=rounds,
        tokens=12,
        blocks=blocks,
        say=said.append,
    )
    return said


def test_systems_take_turns_after_a_warm_up():
    asked = []
    blocks = Blocks(None, {})
    said = run([Fake("a", asked), Fake("b", asked), Fake("one", asked, largest=1)], blocks)
    warm = [("a", 4, 8), ("b", 4, 8)]
    # Eight prompts at batch 1 and 4; the third is asked nothing at batch 4.
    turns = {name: [(name, 1, 12)] * 8 for name in ("a", "b", "one")}
    pairs = {name: [(name, 4, 12)] * 2 for name in ("a", "b")}
    assert asked == [
        *[("a", 1, 8), ("b", 1, 8), ("one", 1, 8)],
        *[*turns["a"], *turns["b"], *turns["one"]],
        *[*warm, *pairs["a"], *pairs["b"]],
        *[*turns["b"], *turns["one"], *turns["a"]],
        *[*pairs["b"], *pairs["a"]],
    ]
    assert len(said) == 4
    assert said[0].startswith("round 1 of 2, batch 1, tokens/s: a float32 ")
    assert {one.tokens for one in blocks.measurements} == {96}
    assert {(one.verifications, one.accepted_drafts) for one in blocks.measurements} == {
        (32, 24),
        (8, 6),
    }


def test_a_batch_larger_than_the_usual_prompts():
    asked = []
    run([Fake("a", asked)], Blocks(None, {}), rounds=1, sizes=(9,))
    assert asked == [("a", 9, 8), ("a", 9, 12)]


@pytest.mark.parametrize("extra", [-1, 1])
def test_another_number_of_tokens_is_refused(extra):
    with pytest.raises(FastMTPError, match=r"a float32 answered 1 prompts with \[\d+\] tokens"):
        run([Fake("a", [], extra=extra)], Blocks(None, {}))


def test_a_stopped_run_goes_on(tmp_path):
    path, settings = tmp_path / "x.partial.jsonl", {"tokens": 12, "dtype": "float32"}
    asked = []

    class Stopped(Fake):
        def answer(self, prompts, tokens):
            if len(prompts) == 4 and tokens == 12:
                raise KeyboardInterrupt
            return super().answer(prompts, tokens)

    with pytest.raises(KeyboardInterrupt):
        run([Fake("a", asked), Stopped("b", asked)], Blocks(path, settings))
    asked.clear()
    blocks = Blocks(path, settings)
    assert {(one.round, one.batch) for one in blocks.measurements} == {(0, 1)}
    run([Fake("a", asked), Fake("b", asked)], blocks)
    assert len([one for one in asked if one == ("a", 1, 12)]) == 8  # the second round alone
    again = Blocks(path, settings)
    assert again.measurements == blocks.measurements
    assert len(again.measurements) == 8
    with pytest.raises(FastMTPError, match="begun with dtype 'float32', and now it is 'bfloat16'"):
        Blocks(path, settings | {"dtype": "bfloat16"})
    again.discard()
    assert not path.exists()


def measured(system, round, speed, answers="ab", batch=1, dtype="float32", counters=(0, 0)):
    return Measurement(
        round=round,
        batch=batch,
        system=system,
        dtype=dtype,
        tokens=100,
        seconds=100 / speed,
        answers=list(answers),
        verifications=counters[0],
        accepted_drafts=counters[1],
    )


def test_rows():
    """The second round ran on a machine of half the speed, which ratios do not see."""
    measurements = [
        *[measured("transformers", n, speed) for n, speed in enumerate((20, 10, 20))],
        *[
            measured("sglang", n, speed, "ac", counters=(10, 5))
            for n, speed in enumerate((30, 16, 36))
        ],
        measured("llama.cpp", 0, 50, dtype="Q8_0", batch=8),
    ]
    reference, row, alone = make_rows(measurements)
    assert (reference.ratio_to_transformers, reference.tokens_per_second) == (1.0, 20)
    assert (row.system, row.batch, row.tokens_per_second) == ("sglang", 1, 30)
    assert row.ratio_to_transformers == 1.6
    assert row.ratio_quartiles == (1.55, 1.7)
    assert row.acceptance_length == 1.5
    assert row.identical_to_transformers == (3, 6)
    assert (alone.dtype, alone.batch, alone.ratio_to_transformers) == ("Q8_0", 8, None)
    assert alone.identical_to_transformers is alone.acceptance_length is None


def test_identical():
    measurements = [
        measured("sglang", 0, 1, "ab"),
        measured("fastmtp", 0, 1, "ab"),
        measured("sglang", 1, 1, "ab"),
        measured("fastmtp", 1, 1, "ax"),
    ]
    assert identical(measurements, "sglang", "fastmtp") == (3, 4)
    assert identical(measurements, "sglang", "none") is None


def test_the_file_is_lines_of_json(tmp_path):
    path = tmp_path / "x.jsonl"
    run([Fake("a", [])], Blocks(path, {"tokens": 12}), rounds=1)
    settings, *blocks = map(json.loads, path.read_text().splitlines())
    assert settings == {"tokens": 12}
    assert [block[0]["batch"] for block in blocks] == [1, 4]
