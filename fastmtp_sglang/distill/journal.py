"""Journals of JSON lines: read back after a kill, which may have torn the last one."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from fastmtp_sglang.errors import FastMTPError

# How to go on after a damage that is not of our making.
DELETE_LINE = "delete that line: the same command then asks again what it held"

_Line = TypeVar("_Line", bound=BaseModel)


def read_journal(path: Path, kind: type[_Line]) -> Iterator[_Line]:
    """Yield the lines of a journal, none if there is no such file; a torn last one is cut off.

    Raises:
        FastMTPError: a line is no `kind`, with file and byte.
    """
    if not path.is_file():
        return
    cut_torn_line(path)
    offset = 0
    with path.open("rb") as file:
        for line in file:
            try:
                yield kind.model_validate(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise FastMTPError(
                    f"{path}, byte {offset}: no line of this journal ({first_problem(error)}); "
                    f"{DELETE_LINE}"
                ) from error
            offset += len(line)


def first_problem(error: Exception) -> str:
    """The first problem in one line; pydantic tells each on several lines."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg'].lower()}"
    return str(error)


def cut_torn_line(path: Path) -> None:
    """Drop what follows the last line end: a write that a kill or a full disk cut short."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        end = size
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            cut = file.read(end - start).rfind(b"\n")
            if cut >= 0:
                end = start + cut + 1
                break
            end = start
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
