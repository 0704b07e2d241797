"""Cleaning: what makes an answer unfit, near duplicates, evaluations, mixing, and the report.

Alone: pytest tests/distill/test_clean.py
"""

import json
import random

import numpy as np
import pytest
from typer.testing import CliRunner

from fastmtp_sglang.cli import app
from fastmtp_sglang.distill.quality import ends_in_loop, reasoning_is_open, repeated_share
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.catalog import SMOLLM2

WORDS = ("river", "stone", "winter", "garden", "engine", "letter", "mountain", "coffee", "paper")


def sentence(seed: int, words: int = 60) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words)) + f" {seed}"


@pytest.fixture
def make(target):
    """A record whose answer is this text."""

    def make(index: int, answer: str, **fields) -> dict:
        source = fields.pop("source", "p")
        turn = fields.pop("turn", 0)
        return {
            "id": f"{source}/{index}/0/{turn}",
            "conversation": f"{source}/{index}/0",
            "turn": turn,
            "source": source,
            "messages": [{"role": "user", "content": fields.pop("said", f"question {index}")}],
            "prompt_ids": [1, 4093, 198],
            "answer_ids": [*target.encode(answer), 2],
            "answer": answer,
            "finish_reason": "stop",
            "sampling": {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "max_new_tokens": 64},
            "model": str(SMOLLM2.checkpoint()),
        } | fields

    return make


@pytest.fixture
def clean(tmp_path):
    """Run `fastmtp data clean` on records; returns the kept ones, the report, the output."""

    def clean(records: list[dict] | dict[str, list[dict]], *flags: str):
        files = records if isinstance(records, dict) else {"in.jsonl": records}
        for name, lines in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        inputs = [str(tmp_path / name) for name in files]
        out = tmp_path / "out.jsonl"
        result = CliRunner().invoke(app, ["data", "clean", *inputs, "--output", str(out), *flags])
        if result.exception:
            raise result.exception
        kept = [json.loads(line) for line in out.read_text().splitlines()]
        return kept, json.loads((tmp_path / "out.report.json").read_text()), result.output

    return clean


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


def test_reasons(clean, make):
    spoken = sentence(0)
    records = [
        make(0, spoken),
        make(1, "ok"),
        make(2, "<think>I begin to reason about it and never come to an end of it"),
        make(3, ("I said it. " * 40).strip()),
        make(4, " ".join([sentence(5, 80)] * 2) + " and so on it went"),
        make(5, spoken, said="question 0"),
        make(6, sentence(6), finish_reason="length"),
        make(7, sentence(7), said="Name a fruit, and tell me where it grows, and when it is ripe"),
        make(8, sentence(8, 2000)),
    ]
    kept, report, output = clean(records, "--drop-truncated", "--max-tokens", "1500")
    assert [record["id"] for record in kept] == ["p/0/0/0", "p/7/0/0"]
    assert {reason: entry["examples"] for reason, entry in report["dropped"].items()} == {
        "too short": ["p/1/0/0"],
        "reasoning without an end": ["p/2/0/0"],
        "ends in a loop": ["p/3/0/0"],
        "repeated n-grams": ["p/4/0/0"],
        "near duplicate": ["p/5/0/0"],
        "cut by length": ["p/6/0/0"],
        "too long": ["p/8/0/0"],
    }
    assert report["read"]["p"]["records"] == 9
    assert report["kept"]["p"]["records"] == 2
    assert report["kept"]["p"]["answer_tokens"] == sum(len(r["answer_ids"]) for r in kept)
    assert report["languages"]["en"] > 0
    assert "near duplicate" in output


def test_evaluations_are_excluded(clean, make, tmp_path):
    (tmp_path / "evaluation.jsonl").write_text(json.dumps({"turns": ["Name a fruit."]}) + "\n")
    records = [make(0, sentence(0), said="Name a fruit."), make(1, sentence(1))]
    kept, report, _ = clean(records, "--exclude", str(tmp_path / "evaluation.jsonl"))
    assert [record["id"] for record in kept] == ["p/1/0/0"]
    assert report["dropped"]["part of an evaluation"]["records"] == 1


@pytest.mark.parametrize("place", ["system", "history", "answer", "prompt"])
def test_evaluations_are_excluded_wherever_they_stand(clean, make, tmp_path, place):
    evaluation = tmp_path / "evaluation.jsonl"
    evaluation.write_text(json.dumps({"prompt": "What is the capital of France?"}) + "\n")
    quoted = "They asked me what is the capital of France"
    said = {"system": "Be brief.", "history": "Hello", "prompt": "question 1"}
    roles = {"system": "system", "history": "user", "prompt": "user"}
    texts = said | {place: quoted}
    answer = f"{sentence(1)} {quoted}" if place == "answer" else sentence(1)
    messages = [{"role": roles[name], "content": texts[name]} for name in roles]
    messages.insert(2, {"role": "assistant", "content": "Hi"})
    records = [make(0, answer, messages=messages), make(1, sentence(2))]
    kept, _, _ = clean(records, "--exclude", str(evaluation))
    assert [record["id"] for record in kept] == ["p/1/0/0"]


@pytest.mark.parametrize("flag", ["--output", "the report"])
def test_an_evaluation_is_never_overwritten(clean, make, tmp_path, flag):
    name = "o.jsonl" if flag == "--output" else "o.report.json"
    evaluation = tmp_path / name
    row = {"turns": ["Name a fruit."]}
    evaluation.write_text(json.dumps([row] if name.endswith(".json") else row))
    before = evaluation.read_bytes()
    clean([make(0, sentence(0))], "--model", "smollm2")  # writes in.jsonl
    evaluation.write_bytes(before)
    arguments = ["data", "clean", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o.jsonl")]
    with pytest.raises(FastMTPError, match=rf"^{flag} .*{name}: is also the input"):
        app([*arguments, "--exclude", str(evaluation)], standalone_mode=False)
    assert evaluation.read_bytes() == before


def test_turns_after_a_dropped_one_go_too(clean, make):
    records = [
        make(0, sentence(0)),
        make(0, "again and again. " * 30, turn=1),
        make(0, sentence(2), turn=2),
        make(1, sentence(3)),
    ]
    kept, report, _ = clean(records)
    assert [record["id"] for record in kept] == ["p/0/0/0", "p/1/0/0"]
    assert report["dropped"]["follows a dropped turn"]["records"] == 1


def test_two_runs_with_the_same_ids_meet(clean, make):
    first = [make(i, sentence(i), source="self") for i in range(3)]
    second = [make(i, sentence(10 + i), source="self") for i in range(3)]
    kept, report, _ = clean({"a.jsonl": first, "b.jsonl": second, "c.jsonl": first})
    assert [record["id"] for record in kept] == [
        *(f"self/{i}/0/0" for i in range(3)),
        *(f"run2/self/{i}/0/0" for i in range(3)),
    ]
    assert kept[3]["conversation"] == "run2/self/0/0"
    assert kept[3] | second[0] == second[0]
    assert report["dropped"]["same record twice"]["records"] == 3


def test_unchanged_lines_and_same_output_again(clean, make, tmp_path):
    records = [make(i, sentence(i), note={"kept": "as it is"}) for i in range(20)]
    flags = ("--total-tokens", "600", "--seed", "3")
    kept, _, _ = clean(records, *flags)
    bytes_once = (tmp_path / "out.jsonl").read_bytes()
    assert kept == [record for record in records if record in kept]
    assert 300 < sum(len(record["answer_ids"]) for record in kept) <= 700
    clean(records, *flags)
    assert (tmp_path / "out.jsonl").read_bytes() == bytes_once


def test_mixing_by_weights(clean, make):
    records = [make(i, sentence(i), source="a") for i in range(60)]
    records += [make(i, sentence(1000 + i), source="b") for i in range(20)]
    kept, report, _ = clean(records, "--weight", "a=1", "--weight", "b=1")
    tokens = {name: entry["answer_tokens"] for name, entry in report["kept"].items()}
    assert report["kept"]["b"]["records"] == 20  # the scarce one is taken whole
    assert tokens["a"] == pytest.approx(tokens["b"], rel=0.06)
    assert report["dropped"]["not drawn by the weights"]["records"] == 80 - len(kept)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--weight", "x=1"], "--weight x=1: no record of that source is left; there are a, b"),
        (["--weight", "a=1"], "the source b has none; give b=0"),
        (["--weight", "a=0", "--weight", "b=0"], "all are 0"),
        (["--weight", "a"], "--weight a: must have the form"),
        (["--weight", "a=nan"], "must have the form"),
        (["--weight", "a=1", "--weight", "a=2"], "a is given twice"),
        (["--max-tokens", "3"], "--max-tokens 3: is below --min-tokens 8"),
        (["--max-repetition", "2"], "must be from 0 to 1"),
        (["--threshold", "0"], "above 0"),
        (["--model", "/no/such"], "no such directory"),
        (["--exclude", "/no/such.jsonl"], "--exclude /no/such.jsonl: no such file"),
    ],
)
def test_refusals(clean, make, flags, reason):
    records = [make(0, sentence(0), source="a"), make(0, sentence(1), source="b")]
    with pytest.raises(FastMTPError, match=reason):
        clean(records, *flags)


def test_weight_of_a_source_that_is_dropped_whole(clean, make):
    records = [make(0, sentence(0), source="a"), make(0, "no", source="b")]
    with pytest.raises(FastMTPError, match="every record of that source was dropped"):
        clean(records, "--weight", "a=1", "--weight", "b=1")


def test_inputs_and_outputs_that_cannot_be(clean, make, tmp_path):
    good = make(0, sentence(0))
    with pytest.raises(FastMTPError, match=r"in\.jsonl, line 1: answer_ids: field required"):
        clean([{name: good[name] for name in good if name != "answer_ids"}])
    out = str(tmp_path / "o.jsonl")
    cases = [
        ([str(tmp_path / "none"), "--output", out], "none does not exist"),
        ([str(tmp_path), "--output", str(tmp_path / "in.jsonl")], r"is also the input .*in\.jsonl"),
        ([str(tmp_path), "--output", str(tmp_path / "folder")], r"must be a file .* \.jsonl"),
        ([str(tmp_path), "--output", str(tmp_path / "no" / "o.jsonl")], "folder .* does not exist"),
    ]
    for arguments, reason in cases:
        with pytest.raises(FastMTPError, match=reason):
            app(["data", "clean", *arguments], standalone_mode=False)


def test_target_that_is_not_here(clean, make):
    records = [make(0, sentence(0), model="org/elsewhere")]
    kept, report, output = clean(records)
    assert len(kept) == 1
    assert "languages" not in report
    assert "org/elsewhere is not on this machine" in " ".join(output.split())
