"""Conversations to be answered: from JSON lines, JSON, Parquet, or any `datasets` source.

A row is a conversation as `conversations` reads it.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.conversations import BadRowError, Conversation, parse_conversation
from fastmtp_sglang.files.digest import digest
from fastmtp_sglang.files.jsonl import read_json, read_jsonl, read_text
from fastmtp_sglang.files.labels import split_label
from fastmtp_sglang.vocabulary.sources import DatasetSource

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DATASETS = "datasets:"


class PromptSource:
    """Rows of one source, streamed.

    Attributes:
        name: Begins the ids of its records.
        files: The local files that are read.
        signature: Changes when the rows of an earlier run may be others.
        total: Number of rows, None if unknown.
    """

    def __init__(self, spec: str, flag: str) -> None:
        name, place = split_label(spec)
        if name is not None and not _NAME.fullmatch(name):
            raise FastMTPError(
                f"{flag} {spec}: no such file, and {name!r} is no name of letters, digits and . _ -"
            )
        self.spec = spec
        self._column: str | None = None
        if place.startswith(_DATASETS):
            source = DatasetSource(spec, None, place.removeprefix(_DATASETS), encode=_not_tokenized)
            self._rows: Callable[[], Iterator[Any]] = source.read
            self._column = source.column
            self.total = source.total
            self.files = source.files
            self.signature = f"{source.identity}, {digest(self.files)}"
            self.name = name or Path(source.name).name
        else:
            path = Path(place)
            self._rows = _file_rows(f"{flag} {spec}", path)
            self.total = None
            self.files = [path]
            self.signature = f"{path.name}, {digest(self.files)}"
            self.name = name or path.stem
        if "/" in self.name:
            raise FastMTPError(f"{flag} {spec}: the name {self.name} must not hold a slash")

    def conversations(self) -> Iterator[Conversation | BadRowError]:
        """Yield every row's conversation, or what is wrong with it; starts anew with every call."""
        for row in self._rows():
            try:
                yield parse_conversation(row, self._column)
            except BadRowError as error:
                yield error


def open_prompts(specs: list[str], flag: str = "--prompts") -> list[PromptSource]:
    """Open the sources and read the first row of each.

    A spec is `[NAME=]FILE` (.jsonl, .json, .parquet),
    `[NAME=]datasets:NAME[?config=C&split=S&column=FIELD&data_files=F]`, or a folder, which stands
    for the .jsonl files in it. `flag` is what errors name.

    Raises FastMTPError when one is missing, empty, begins with a bad row, has a name that cannot be
    written, or two share a name.
    """
    sources = [PromptSource(file, flag) for spec in specs for file in _files_of(spec, flag)]
    for index, source in enumerate(sources):
        if not source.name.isprintable():
            # Records and the manifest name their source.
            raise FastMTPError(
                f"{flag} {source.spec!r}: its name cannot be written; give another one as NAME=..."
            )
        if source.name in [other.name for other in sources[:index]] or source.name == "self":
            raise FastMTPError(
                f"{flag} {source.spec}: the name {source.name} is taken; give another one as "
                f"NAME={source.spec}"
            )
        first = next(source.conversations(), None)
        if first is None:
            raise FastMTPError(f"{flag} {source.spec}: holds no rows")
        if isinstance(first, BadRowError):
            raise FastMTPError(f"{flag} {source.spec}: the first row {first}")
    return sources


def read_starts(path: Path, flag: str = "--prompt-starts") -> list[str]:
    """Return the first words of prompts: the lines of a text file, without empty ones.

    Raises FastMTPError when the file is missing, holds none or is not UTF-8.
    """
    try:
        lines = read_text(path, name=f"{flag} {path}").splitlines()
    except OSError as error:
        raise FastMTPError(f"{flag} {path}: cannot be read ({error.strerror})") from error
    starts = [line.strip() for line in lines if line.strip()]
    if not starts:
        raise FastMTPError(f"{flag} {path}: holds no lines")
    return starts


def _files_of(spec: str, flag: str) -> list[str]:
    """Return the specs of a folder's files; anything else is a spec of its own."""
    if not Path(spec).is_dir():
        return [spec]
    files = sorted(map(str, Path(spec).glob("*.jsonl")))
    if not files:
        raise FastMTPError(f"{flag} {spec}: is a folder without .jsonl files")
    return files


def _file_rows(given: str, path: Path) -> Callable[[], Iterator[Any]]:
    """Return a function that iterates over the rows of a file; `given` begins the errors."""
    readers = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}
    if not path.is_file():
        raise FastMTPError(f"{given}: no such file; data sets are named as {_DATASETS}NAME")
    if path.suffix not in readers:
        raise FastMTPError(f"{given}: give a file of {', '.join(readers)}, or {_DATASETS}NAME")
    reader = readers[path.suffix]
    return lambda: reader(given, path)


def _jsonl(given: str, path: Path) -> Iterator[Any]:
    for row in read_jsonl(path, name=given):
        yield row.content


def _json(given: str, path: Path) -> Iterator[Any]:
    content = read_json(path, name=given)
    if not isinstance(content, list):
        raise FastMTPError(f"{given}: must hold a list of conversations")
    yield from content


def _parquet(given: str, path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise FastMTPError(
            f"{given}: Parquet needs pyarrow; run `pip install 'fastmtp-sglang[train]'`"
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise FastMTPError(f"{given}: not a Parquet file ({error})") from error


def _not_tokenized(text: str) -> list[int]:
    raise AssertionError("prompts are tokenized by the chat template, not by their source")
