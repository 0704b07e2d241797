"""Cleaning: which records stay, unchanged and in which order, and what the report says of the rest.

Alone: pytest tests/distill/test_clean.py
"""

import json

import pytest
from cleaning import sentence

from fastmtp_sglang.errors import FastMTPError

pytestmark = pytest.mark.heavy


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


def test_weight_of_a_source_that_is_dropped_whole(clean, make):
    records = [make(0, sentence(0), source="a"), make(0, "no", source="b")]
    with pytest.raises(FastMTPError, match="every record of that source was dropped"):
        clean(records, "--weight", "a=1", "--weight", "b=1")
