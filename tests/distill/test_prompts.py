"""Conversations from files and data sets, in the four spellings, and rows that are none.

Alone: pytest tests/distill/test_prompts.py
"""

import json

import pyarrow
import pyarrow.parquet
import pytest

from fastmtp_sglang.distill.prompts import open_prompts, read_starts
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.conversations import BadRowError, Conversation, parse_conversation

ROWS = [
    {"prompt": "Name a fruit."},
    {"turns": ["a", "b"], "system": "Be brief."},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "not taken"},
            {"role": "user", "content": "b"},
        ]
    },
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "x"}]},
]
EXPECTED = [
    Conversation(None, ["Name a fruit."]),
    Conversation("Be brief.", ["a", "b"]),
    Conversation("s", ["a", "b"]),
    Conversation(None, ["a"]),
]


@pytest.fixture
def write(tmp_path):
    def write(name: str, rows: list) -> str:
        path = tmp_path / name
        if path.suffix == ".parquet":
            names = sorted({name for row in rows for name in row})
            columns = {name: [row.get(name) for row in rows] for name in names}
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
        elif path.suffix == ".json":
            path.write_text(json.dumps(rows))
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize(("row", "expected"), list(zip(ROWS, EXPECTED, strict=True)))
def test_spellings(row, expected):
    assert parse_conversation(row) == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "x"}, "has the fields text"),
        ({"prompt": "  "}, "empty user turn"),
        ({"prompt": 3}, "no text"),
        ({"turns": []}, "no text"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "no user turn"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "the role 'tool'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "no text"),
        ("text", "is a str"),
    ],
)
def test_rows_that_are_no_conversation(row, reason):
    with pytest.raises(BadRowError, match=reason):
        parse_conversation(row)


@pytest.mark.parametrize("name", ["p.jsonl", "p.json"])
def test_files(write, name):
    (source,) = open_prompts([write(name, ROWS)])
    assert source.name == "p"
    assert list(source.conversations()) == EXPECTED
    assert list(source.conversations()) == EXPECTED  # anew


def test_parquet_fills_missing_fields_with_nulls(write):
    (source,) = open_prompts(["mine=" + write("p.parquet", ROWS[:2])])
    assert source.name == "mine"
    assert list(source.conversations()) == EXPECTED[:2]


def test_datasets_source_with_a_column(write):
    path = write("p.jsonl", [{"question": "a"}, {"question": "b"}])
    (source,) = open_prompts([f"q=datasets:json?data_files={path}&column=question"])
    assert source.name == "q"
    assert [talk.turns for talk in source.conversations()] == [["a"], ["b"]]


def test_bad_rows_after_the_first_do_not_end_the_run(write):
    (source,) = open_prompts([write("p.jsonl", [ROWS[0], {"x": 1}, ROWS[1]])])
    kinds = [type(row) for row in source.conversations()]
    assert kinds == [Conversation, BadRowError, Conversation]


def test_refusals_name_the_flag_and_the_remedy(write, tmp_path):
    good = write("good.jsonl", ROWS)
    (tmp_path / "broken.jsonl").write_text("{")
    (tmp_path / "broken.parquet").write_text("{")
    cases = {
        str(tmp_path / "missing.jsonl"): "no such file",
        write("p.csv", ROWS): "give a file of",
        write("empty.jsonl", []): "holds no rows",
        write("bad.jsonl", [{"x": 1}]): "first row has the fields x",
        str(tmp_path / "broken.jsonl"): "line 1, byte 1: not valid JSON",
        str(tmp_path / "broken.parquet"): "not a Parquet file",
    }
    for spec, reason in cases.items():
        with pytest.raises(FastMTPError, match=rf"^--prompts .*{reason}"):
            open_prompts([spec])
    with pytest.raises(FastMTPError, match="the name good is taken"):
        open_prompts([good, good])
    with pytest.raises(FastMTPError, match="the name self is taken"):
        open_prompts([f"self={good}"])


def test_starts_are_the_lines_of_a_file(tmp_path):
    path = tmp_path / "starts.txt"
    path.write_text("Why is\n\n  List five \n", encoding="utf-8")
    assert read_starts(path) == ["Why is", "List five"]


@pytest.mark.parametrize("content", [None, b"\n \n", b"\xff"])
def test_refused_starts(tmp_path, content):
    path = tmp_path / "starts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FastMTPError, match="--prompt-starts"):
        read_starts(path)
