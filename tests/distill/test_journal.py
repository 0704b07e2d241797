"""Journals after a kill: the torn line goes, whole ones stay, and what is no line is named.

Alone: pytest tests/distill/test_journal.py
"""

import random

import pytest
from pydantic import BaseModel

from fastmtp_sglang.distill import journal
from fastmtp_sglang.distill.journal import DELETE_LINE, cut_torn_line, read_journal
from fastmtp_sglang.errors import FastMTPError

SEED = 20250918
# What is read from the end at a time.
BLOCK = 65536


class Line(BaseModel):
    name: str
    counts: list[int] = []


@pytest.fixture
def write(tmp_path):
    def write(content: bytes):
        path = tmp_path / "x.journal"
        path.write_bytes(content)
        return path

    return write


def test_no_file_is_an_empty_journal(tmp_path):
    assert list(read_journal(tmp_path / "none", Line)) == []


def test_lines_come_back_in_order(write):
    path = write('{"name": "a", "counts": [1, 2]}\n{"name": "长城\u2028"}\n'.encode())
    assert list(read_journal(path, Line)) == [
        Line(name="a", counts=[1, 2]),
        Line(name="长城\u2028"),
    ]


@pytest.mark.parametrize("kept", [b"", b"{}\n", b"a\nb\n", b"x" * 2 * BLOCK + b"\n"])
@pytest.mark.parametrize("torn", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_what_follows_the_last_line_end_is_cut(write, kept, torn):
    """Wherever the line end lies to the blocks that are read."""
    path = write(kept + b"t" * torn)
    cut_torn_line(path)
    assert path.read_bytes() == kept


def test_a_whole_journal_is_not_written_to(write, monkeypatch):
    def written(_):
        raise AssertionError("written to the disk")

    monkeypatch.setattr(journal.os, "fsync", written)
    for content in (b"", b"\n", b"a\n", b"a" * BLOCK + b"\n"):
        path = write(content)
        cut_torn_line(path)
        assert path.read_bytes() == content


def test_a_journal_cut_anywhere_gives_its_whole_lines(write):
    lines = [f'{{"name": "n{number} é"}}\n'.encode() for number in range(9)]
    whole = b"".join(lines)
    source = random.Random(SEED)
    for end in source.sample(range(len(whole) + 1), 60):
        path = write(whole[:end])
        names = [line.name for line in read_journal(path, Line)]
        assert names == [f"n{number} é" for number in range(whole[:end].count(b"\n"))]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"counts": []}', "name: field required"),
        (b'{"name": "a", "counts": [1, "x"]}', r"counts\.1: input should be a valid integer"),
        (b"[1]", "the line: input should be a valid dictionary"),
        (b"", "Expecting value"),
        (b"\xff", "can't decode byte 0xff"),
        (b"[" * 100_000, "recursion"),
        (b'{"name": "a"} {"name": "b"}', "Extra data"),
    ],
)
def test_what_is_no_line_is_named_by_its_byte(write, line, reason):
    """In one line, with the way out; what came before it was read."""
    good = '{"name": "é"}\n'.encode()
    path = write(good + line + b"\n" + good)
    read = read_journal(path, Line)
    assert next(read) == Line(name="é")
    with pytest.raises(FastMTPError, match=reason) as error:
        next(read)
    assert str(error.value).startswith(f"{path}, byte {len(good)}: no line of this journal (")
    assert str(error.value).endswith(f"); {DELETE_LINE}")
    assert "\n" not in str(error.value)
