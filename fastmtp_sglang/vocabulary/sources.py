"""Where the builder's tokens come from: distillation JSONL, plain text, and `datasets` sources.

A source streams documents and, with each, the position after it: an integer that continues the
stream at the next document (bytes over all its files, or rows of a data set). What is read once
is never held in memory.
"""

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.jsonl import BYTE_ORDER_MARK, Row, decode, read_jsonl, skip_to
from fastmtp_sglang.files.labels import split_label
from fastmtp_sglang.vocabulary.draft_vocabulary import LANGUAGE_NAME

# Fields of one line of `fastmtp distill`: token ids, never tokenized again.
PROMPT_IDS = "prompt_ids"
ANSWER_IDS = "answer_ids"

# A document of plain text: some 2,000 tokens, so that small corpora still have held-out documents.
TEXT_BLOCK = 8192

_DATASETS = "datasets:"
_DATASET_OPTIONS = {"config", "split", "column", "data_files"}

Encode = Callable[[str], Sequence[int]]


@dataclass(frozen=True, eq=False)
class Document:
    """Tokens to count, int64 [n], and what the model had read before them, int64 [m]."""

    ids: np.ndarray
    prompt_ids: np.ndarray


class Source(ABC):
    """A resumable stream of documents."""

    def __init__(self, spec: str, label: str | None) -> None:
        self.spec = spec
        self.label = label  # the language of all its documents; None to decide by their scripts

    @property
    @abstractmethod
    def files(self) -> list[Path]:
        """The local files that are read."""

    @property
    @abstractmethod
    def total(self) -> int | None:
        """Position of the end, None if unknown."""

    @property
    def identity(self) -> str:
        """What it is, whatever its files hold at the moment."""
        return json.dumps([self.spec, *map(str, self.files)])

    @abstractmethod
    def documents(self, start: int) -> Iterator[tuple[Document, int]]:
        """Yield the documents from position `start` on, each with the position after it.

        Raises:
            FastMTPError: A document that cannot be read, with file and line or row.
        """


def open_source(spec: str, encode: Encode) -> Source:
    """Make a source of what the command line names.

    Args:
        spec: `[LANG=]PATH`, a file or a folder of files: `.jsonl` is distillation data, anything
            else text; or `[LANG=]datasets:NAME[?config=C&split=S&column=TEXT&data_files=F]`, where
            NAME is anything that `datasets.load_dataset` takes or a folder of `save_to_disk`.
        encode: Turns text into token ids.

    Raises:
        FastMTPError: No such file, an unknown option, or a folder that mixes kinds.
    """
    label, place = split_label(spec)
    if label is not None and not LANGUAGE_NAME.fullmatch(label):
        raise FastMTPError(
            f"source {spec}: no such file or folder, and '{label}' is no language name: lower-case "
            "letters, digits, '-' and '_', such as en or zh."
        )
    if place.startswith(_DATASETS):
        return DatasetSource(spec, label, place.removeprefix(_DATASETS), encode)
    files = _files(Path(place))
    if files[0].suffix == ".jsonl":
        return DistillationSource(spec, label, files)
    return TextSource(spec, label, files, encode)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise FastMTPError(
            f"source {path}: no such file or folder. Data sets are named as {_DATASETS}NAME."
        )
    files = _all_files(path)
    if not files:
        raise FastMTPError(f"source {path}: the folder holds no files.")
    # A folder of distillation data also holds its settings and reports.
    return [file for file in files if file.suffix == ".jsonl"] or files


def _all_files(path: Path) -> list[Path]:
    """Return the files below a folder, without hidden ones; none where it is no folder."""
    return sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part[0] == "." for part in file.relative_to(path).parts)
    )


class _FileSource(Source):
    """Files read one after the other; a position counts the bytes of all of them."""

    def __init__(self, spec: str, label: str | None, files: list[Path]) -> None:
        super().__init__(spec, label)
        self._files = files
        self.sizes = [file.stat().st_size for file in files]

    @property
    def files(self) -> list[Path]:
        return self._files

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def documents(self, start: int) -> Iterator[tuple[Document, int]]:
        before = 0
        for path, size in zip(self.files, self.sizes, strict=True):
            if start < before + size:
                for document, end in self._read(path, max(0, start - before)):
                    yield document, before + end
            before += size

    @abstractmethod
    def _read(self, path: Path, start: int) -> Iterator[tuple[Document, int]]:
        """Yield the documents of a file from byte `start` on, each with the byte after it."""


class DistillationSource(_FileSource):
    """Answers that the target wrote itself, one a line."""

    def _read(self, path: Path, start: int) -> Iterator[tuple[Document, int]]:
        for row in read_jsonl(path, start=start):
            yield _distilled(row), row.end


def _distilled(row: Row) -> Document:
    record = row.content
    if not isinstance(record, dict) or ANSWER_IDS not in record:
        raise FastMTPError(
            f"{row.place}: has no field {ANSWER_IDS}, so it is not an answer of `fastmtp distill`. "
            "For text in JSON give `datasets:json?data_files=FILE&column=FIELD`."
        )
    return Document(
        _ids(record[ANSWER_IDS], f"{row.place}, {ANSWER_IDS}"),
        _ids(record.get(PROMPT_IDS, []), f"{row.place}, {PROMPT_IDS}"),
    )


def _ids(value: Any, place: str) -> np.ndarray:
    if not isinstance(value, list) or any(type(item) is not int for item in value):
        raise FastMTPError(f"{place}: must be a list of integer token ids.")
    try:
        return np.array(value, dtype=np.int64)
    except OverflowError as error:
        raise FastMTPError(f"{place}: holds an integer of more than 64 bits.") from error


class TextSource(_FileSource):
    """UTF-8 text, cut into blocks at line ends (at blanks, or anywhere, in very long lines)."""

    def __init__(self, spec: str, label: str | None, files: list[Path], encode: Encode) -> None:
        super().__init__(spec, label, files)
        self.encode = encode

    def _read(self, path: Path, start: int) -> Iterator[tuple[Document, int]]:
        with path.open("rb") as file:
            line = 1 + skip_to(file, start)
            while block := file.read(TEXT_BLOCK):
                if len(block) == TEXT_BLOCK:
                    block = block[: _cut(block)]
                    file.seek(start + len(block))
                text = decode(block, str(path), line, start)
                if start == 0:
                    text = text.removeprefix(BYTE_ORDER_MARK)
                start += len(block)
                line += block.count(b"\n")
                yield Document(np.array(self.encode(text), dtype=np.int64), _NOTHING), start


def _cut(block: bytes) -> int:
    """Return where a full block ends: after a line, else before a blank, else a character."""
    for cut in (block.rfind(b"\n") + 1, block.rfind(b" ")):
        if cut > 0:
            return cut
    cut = len(block)
    # At most three continuation bytes can precede the lead byte of a cut character.
    while cut > len(block) - 4 and block[cut - 1] & 0xC0 == 0x80:
        cut -= 1
    return cut - 1 if block[cut - 1] >= 0xC0 else len(block)


_NOTHING = np.empty(0, dtype=np.int64)


class DatasetSource(Source):
    """Rows of a Hugging Face data set, streamed."""

    def __init__(self, spec: str, label: str | None, place: str, encode: Encode) -> None:
        super().__init__(spec, label)
        name, _, query = place.partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        wrong = sorted(set(options) - _DATASET_OPTIONS)
        if wrong or not name:
            problem = f"unknown option {', '.join(wrong)}" if wrong else "names no data set"
            raise FastMTPError(
                f"source {spec}: {problem}; the form is "
                f"{_DATASETS}NAME[?config=C&split=S&column=TEXT&data_files=F]."
            )
        self.encode = encode
        self.name = name
        self.column = options.pop("column", None)
        self.options = options
        self.rows = self._open()

    def _open(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise FastMTPError(
                f"source {self.spec}: needs the package datasets; install it with "
                "`pip install 'fastmtp-sglang[bench]'`."
            ) from error

        # It logs what it raises, and the one line of ours says it.
        logging.getLogger("datasets").setLevel(logging.CRITICAL)
        split = self.options.get("split", "train")
        try:
            if (Path(self.name) / "state.json").is_file():
                return datasets.load_from_disk(self.name)
            if (Path(self.name) / "dataset_dict.json").is_file():
                return datasets.load_from_disk(self.name)[split]
            return datasets.load_dataset(
                self.name,
                self.options.get("config"),
                split=split,
                data_files=self.options.get("data_files"),
                streaming=True,
            )
        except Exception as error:  # datasets raises its own, fsspec's, pyarrow's and the hub's
            raise FastMTPError(
                f"source {self.spec}: datasets cannot open it ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]})."
            ) from error

    @property
    def total(self) -> int | None:
        """Number of rows; None for a data set that is streamed."""
        return getattr(self.rows, "num_rows", None)

    @property
    def identity(self) -> str:
        """Name, options and, where known, the number of rows."""
        return json.dumps([self.spec, self.total])

    @property
    def files(self) -> list[Path]:
        """Those that the options or the name of the data set name, where they are local."""
        given = glob(self.options.get("data_files", ""))
        return sorted(file for file in map(Path, given) if file.is_file()) or _all_files(
            Path(self.name)
        )

    def read(self, start: int = 0) -> Iterator[dict[str, Any]]:
        """Yield the rows from `start` on.

        Raises:
            FastMTPError: One cannot be read.
        """
        try:
            yield from self.rows.skip(start) if start else self.rows
        except Exception as error:  # as when it is opened, which reads little of a stream
            raise FastMTPError(
                f"source {self.spec}: datasets cannot read it ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:200]})."
            ) from error

    def documents(self, start: int) -> Iterator[tuple[Document, int]]:
        """Yield the documents of the rows from `start` on."""
        for position, row in enumerate(self.read(start), start=start + 1):
            place = f"source {self.spec}, row {position - 1}"
            if self.column is None and ANSWER_IDS in row:
                ids = _ids(row[ANSWER_IDS], f"{place}, {ANSWER_IDS}")
                prompt = _ids(row.get(PROMPT_IDS) or [], f"{place}, {PROMPT_IDS}")
                yield Document(ids, prompt), position
            else:
                text = self._text(row, place)
                yield Document(np.array(self.encode(text), dtype=np.int64), _NOTHING), position

    def _text(self, row: dict[str, Any], place: str) -> str:
        column = self.column or "text"
        if column not in row:
            raise FastMTPError(
                f"{place}: has no column '{column}'; it has {', '.join(row)}. Name the text with "
                "`column=NAME`."
            )
        value = row[column]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return "\n".join(value)
        if isinstance(value, list) and all(
            isinstance(item, dict) and isinstance(item.get("content"), str) for item in value
        ):
            return "\n".join(message["content"] for message in value)
        if not isinstance(value, str):
            raise FastMTPError(
                f"{place}: column '{column}' holds a {type(value).__name__}; text, or a list of "
                "texts or of chat messages with 'content', is expected."
            )
        return value
