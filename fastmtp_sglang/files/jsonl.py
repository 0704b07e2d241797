"""JSON lines, JSON and text from people, read the same way by every command.

UTF-8, with or without a byte order mark; lines end in "\\n" or "\\r\\n", and empty ones are passed
over. What cannot be read is one FastMTPError that names the file, the line and the byte.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fastmtp_sglang.errors import FastMTPError

BYTE_ORDER_MARK = "\ufeff"
_MARK = BYTE_ORDER_MARK.encode()


@dataclass(frozen=True)
class Row:
    """One line of JSON.

    Attributes:
        content: What it holds.
        name: Of the file, as errors say it.
        line: Its number, from 1.
        start: The file's byte that it begins with.
        end: The byte after its line end.
    """

    content: Any
    name: str
    line: int
    start: int
    end: int

    @property
    def place(self) -> str:
        """Where it stands, to begin an error with."""
        return f"{self.name}, line {self.line}"


def read_jsonl(path: Path, *, name: str | None = None, start: int = 0) -> Iterator[Row]:
    """Yield the lines of a file, one in memory at a time.

    Args:
        path: An existing file.
        name: What errors begin with, such as the option that named the file; else the path.
        start: Where a line begins; what comes before it is not yielded.

    Raises:
        FastMTPError: A line is not UTF-8 or not JSON.
    """
    name = name or str(path)
    with path.open("rb") as file:
        first = 1 + skip_to(file, start)
        end = start
        for number, line in enumerate(file, first):
            begin, end = end, end + len(line)
            if begin == 0 and line.startswith(_MARK):
                begin, line = len(_MARK), line.removeprefix(_MARK)
            if line.strip():
                content = _parse(line.rstrip(b"\r\n"), name, number, begin)
                yield Row(content, name, number, begin, end)


def read_json(path: Path, *, name: str | None = None) -> Any:
    """Return what a file of JSON holds; arguments and errors as above."""
    data = path.read_bytes()
    text = data.removeprefix(_MARK)
    return _parse(text, name or str(path), 1, len(data) - len(text))


def read_text(path: Path, *, name: str | None = None) -> str:
    """Return a text file; arguments and errors as above."""
    data = path.read_bytes()
    text = data.removeprefix(_MARK)
    return decode(text, name or str(path), 1, len(data) - len(text))


def decode(data: bytes, name: str, line: int, byte: int) -> str:
    """Return bytes as text; the first of them is the file's `byte`, in its `line`.

    Raises:
        FastMTPError: They are not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FastMTPError(
            f"{_at(data, error.start, name, line, byte)}: {data[error.start]:#04x} is not UTF-8 "
            f"({error.reason}): save the file as UTF-8"
        ) from error


def skip_to(file: BinaryIO, start: int) -> int:
    """Move from the beginning of a file to a byte, and return the line ends before it."""
    lines, left = 0, start
    while left > 0 and (block := file.read(min(left, 1 << 20))):
        lines += block.count(b"\n")
        left -= len(block)
    return lines


def _parse(data: bytes, name: str, line: int, byte: int) -> Any:
    text = decode(data, name, line, byte)
    at = 0
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at, reason = len(text[: error.pos].encode()), error.msg
    except RecursionError:
        reason = "nested too deeply"
    except ValueError as error:  # a number with too many digits
        reason = str(error)
    raise FastMTPError(f"{_at(data, at, name, line, byte)}: not valid JSON ({reason})")


def _at(data: bytes, at: int, name: str, line: int, byte: int) -> str:
    """Return the place in the file of `data[at]`; `line` and `byte` are those of `data[0]`."""
    newlines = data.count(b"\n", 0, at)
    return f"{name}, line {line + newlines}, byte {byte + at}"
