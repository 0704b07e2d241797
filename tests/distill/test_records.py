"""Records: the same line read back, errors that name the field, and the files that hold them.

Alone: pytest tests/distill/test_records.py
"""

import json
from pathlib import Path

import pytest

from fastmtp_sglang.distill.records import (
    MANIFEST,
    Message,
    Record,
    Sampling,
    check_record,
    json_line,
    parse_record,
    read_records,
    record_files,
)
from fastmtp_sglang.errors import FastMTPError


def record(**changes) -> Record:
    fields = {
        "id": "p/0/0/0",
        "conversation": "p/0/0",
        "turn": 0,
        "source": "p",
        "messages": [Message(role="user", content="question")],
        "prompt_ids": [1, 2],
        "answer_ids": [3, 2],
        "answer": "naïve\u2028长城",
        "finish_reason": "stop",
        "sampling": Sampling(temperature=0.6, top_k=-1, top_p=1, max_new_tokens=9),
        "model": "smollm2",
    }
    return Record(**(fields | changes))


@pytest.mark.parametrize("answer", ["naïve 长城\u2028\n\t", "\ud83d half", "\x00", ""])
def test_a_line_gives_the_same_record(answer):
    line = record(answer=answer).line()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert parse_record(line, "x") == record(answer=answer)


def test_text_is_written_as_it_is_read_unless_it_is_no_utf_8():
    assert json_line({"a": "长城"}) == '{"a": "长城"}\n'.encode()
    assert json_line({"a": "长\ud83d"}) == b'{"a": "\\u957f\\ud83d"}\n'


def test_fields_of_other_tools_travel():
    noted = check_record(record().model_dump() | {"task": {"kind": "x"}, "score": None}, "x")
    content = json.loads(noted.line())
    assert content["task"] == {"kind": "x"}
    assert content["score"] is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer_ids": None}, "answer_ids: input should be a valid list"),
        ({"answer_ids": [1, "x"]}, r"answer_ids\.1: input should be a valid integer.*"),
        ({"finish_reason": "abort"}, "finish_reason: input should be 'stop' or 'length'"),
        ({"messages": [{"role": "user"}]}, r"messages\.0\.content: field required"),
        ({"sampling": {}}, r"sampling\.temperature: field required"),
    ],
)
def test_a_field_that_is_wrong_is_named(changes, reason):
    content = record().model_dump() | changes
    with pytest.raises(
        FastMTPError, match=f"^a.jsonl, line 7: {reason}; this is no record"
    ) as told:
        check_record(content, "a.jsonl, line 7")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"3", "the line: input should be"),
    ],
)
def test_a_line_that_is_no_record(line, reason):
    with pytest.raises(FastMTPError, match=f"^here: {reason}"):
        parse_record(line, "here")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Shards of one record each, whose ids are the names of their files, and what is no shard."""
    for name in ("shard-00010", "shard-00002", "kept"):
        (tmp_path / f"{name}.jsonl").write_bytes(record(id=name).line())
    (tmp_path / "shard-00011.journal").write_bytes(b"{")
    (tmp_path / "folder.jsonl").mkdir()
    return tmp_path


def test_a_folder_is_its_files_by_name(folder):
    ids = [record.id for record in read_records([folder])]
    assert ids == ["kept", "shard-00002", "shard-00010"]


def test_of_a_folder_that_distill_fills_only_finished_shards_are_read(folder):
    """A cleaned file may lie beside them, and would be read twice."""
    (folder / MANIFEST).write_text("{}")
    assert [record.id for record in read_records([folder])] == ["shard-00002", "shard-00010"]
    for shard in folder.glob("shard-*.jsonl"):
        shard.unlink()
    with pytest.raises(FastMTPError, match=r"holds no finished shard \(shard-\*\.jsonl\): give"):
        record_files([folder])


def test_files_keep_the_order_in_which_they_are_given(folder):
    given = [folder / "shard-00010.jsonl", folder / "kept.jsonl"]
    assert record_files(given) == given


def test_missing_data(tmp_path):
    with pytest.raises(FastMTPError, match="none does not exist: give what"):
        record_files([tmp_path / "none"])
    with pytest.raises(FastMTPError, match=r"holds no finished shard \(\*\.jsonl\)"):
        record_files([tmp_path])
