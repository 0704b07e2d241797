"""One reader of JSON lines: marks, line ends, and errors that name file, line and byte.

Alone: pytest tests/files/test_jsonl.py
"""

from types import SimpleNamespace

import pytest

from fastmtp_benchmarks.tasks import load_tasks
from fastmtp_sglang.distill.prompts import open_prompts
from fastmtp_sglang.distill.records import Record, Sampling, read_records
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.jsonl import read_json, read_jsonl, read_text
from fastmtp_sglang.training.records import read_turns
from fastmtp_sglang.vocabulary.sources import open_source

MARK = b"\xef\xbb\xbf"


def contents(path, **options):
    return [row.content for row in read_jsonl(path, **options)]


@pytest.mark.parametrize(
    "data",
    [
        b'{"a": 1}\n{"a": 2}\n',
        b'{"a": 1}\n{"a": 2}',
        b'{"a": 1}\r\n{"a": 2}\r\n',
        b'\n  \n{"a": 1}\n\n\n{"a": 2}\n \n',
        MARK + b'{"a": 1}\n{"a": 2}\n',
        MARK + b'\r\n{"a": 1}\r\n{"a": 2}',
    ],
)
def test_rows_and_their_places(tmp_path, data):
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    assert contents(path) == [{"a": 1}, {"a": 2}]
    for row in read_jsonl(path):
        assert data[row.start : row.end].strip().startswith(b'{"a"')
        assert row.line == data.count(b"\n", 0, row.start) + 1
        assert row.place == f"{path}, line {row.line}"
    first, second = read_jsonl(path)
    assert contents(path, start=first.end) == [{"a": 2}]
    assert next(read_jsonl(path, start=first.end)).line == second.line
    assert contents(path, start=second.end) == []


@pytest.mark.parametrize("data", [b"", b"\n", MARK, MARK + b"\n\n"])
def test_nothing(tmp_path, data):
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    assert contents(path) == []


def test_a_line_separator_inside_a_string_ends_no_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "x\u2028y\u0085"}\n', encoding="utf-8")
    assert contents(path) == [{"a": "x\u2028y\u0085"}]


@pytest.mark.parametrize(
    ("bad", "place", "reason"),
    [
        (b'{"a": "caf\xe9"}', "line 3, byte 28", "0xe9 is not UTF-8 (invalid continuation"),
        ('{"a": 1}'.encode("utf-16"), "line 3, byte 18", "0xff is not UTF-8"),
        (b"\x1f\x8b\x08", "line 3, byte 19", "0x8b is not UTF-8"),
        (b'{"a": 1', "line 3, byte 25", "not valid JSON (Expecting"),
        ('{"ä": 1,}'.encode(), "line 3, byte 27", "not valid JSON"),
        (b"{'a': 1}", "line 3, byte 19", "not valid JSON"),
        (b'{"a": 1} {"a": 2}', "line 3, byte 27", "not valid JSON (Extra data)"),
        (b'{"a": 1}\r{"a": 2}', "line 3, byte 27", "not valid JSON (Extra data)"),
        (b'{"a": "\x00"}', "line 3, byte 25", "not valid JSON (Invalid control"),
        (b"[" * 100_000, "line 3, byte 18", "not valid JSON (nested too deeply)"),
        (b"9" * 5000, "line 3, byte 18", "not valid JSON (Exceeds"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, bad, place, reason):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + bad + b'\n{"a": 3}\n')
    for name in (None, "--prompts here"):
        with pytest.raises(FastMTPError) as error:
            contents(path, name=name)
        assert str(error.value).startswith(f"{name or path}, {place}: {reason}")
        assert "\n" not in str(error.value)


def test_the_mark_counts_as_bytes_of_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(MARK + b'{"a": \xff}')
    with pytest.raises(FastMTPError, match="line 1, byte 9: 0xff is not UTF-8"):
        contents(path)


def test_a_whole_file_of_json_and_of_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(MARK + b"[1,\n2]")
    assert read_json(path) == [1, 2]
    assert read_text(path) == "[1,\n2]"
    path.write_bytes(b'[1,\n"\xe9"]')
    for read in (read_json, read_text):
        with pytest.raises(FastMTPError, match=r"a\.json, line 2, byte 5: 0xe9 is not UTF-8"):
            read(path)
    path.write_bytes(b"[1,\n2")
    with pytest.raises(FastMTPError, match=r"a\.json, line 2, byte 5: not valid JSON"):
        read_json(path)


TARGET = SimpleNamespace(vocab_size=10)
READERS = {
    "vocab build": lambda path: [d.ids for d, _ in open_source(str(path), str.encode).documents(0)],
    "data clean": lambda path: list(read_records([path])),
    "distill --prompts": lambda path: list(open_prompts([str(path)])[0].conversations()),
    "bench --task": lambda path: load_tasks([str(path)])[0].conversations,
    "train": lambda path: list(read_turns([path], TARGET, skipped=lambda reason: None)),
}


@pytest.mark.parametrize("command", READERS)
def test_every_command_reads_alike(tmp_path, command):
    sampling = Sampling(temperature=0, top_k=-1, top_p=1, max_new_tokens=9)
    record = Record(
        id="a", conversation="a", turn=0, source="s", messages=[{"role": "user", "content": "x"}],
        prompt_ids=[1], answer_ids=[2], answer="café", finish_reason="stop", sampling=sampling,
        model="m",
    )  # fmt: skip
    path = tmp_path / "a.jsonl"
    path.write_bytes(MARK + record.line())
    assert len(READERS[command](path)) == 1
    path.write_bytes(record.line() + record.line().decode().encode("latin-1"))
    at = path.read_bytes().rindex(b"\xe9")
    with pytest.raises(FastMTPError, match=rf"a\.jsonl, line 2, byte {at}: 0xe9 is not UTF-8"):
        READERS[command](path)
