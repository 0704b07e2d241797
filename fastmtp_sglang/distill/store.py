"""The output directory of `fastmtp distill`: shards, journals, and what a killed run left in them.

    shard-00000.jsonl    finished shards, never written again
    shard-00001.journal  the shard being filled: records appended and flushed to the disk one by one
    prompts.journal      user turns that the target wrote
    skipped.journal      requests and conversations that gave no record, with the reason
    manifest.json        the settings, the counts, the finished shards

The files are the truth; the manifest is a summary. A line that a kill tore is dropped when the run
goes on, and its request is sent again. A finished shard is its journal, renamed.
"""

import contextlib
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ValidationError

from fastmtp_sglang.distill.records import MANIFEST, Record, json_line, parse_record
from fastmtp_sglang.distill.settings import Settings, differences
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import write_atomically

_PROMPTS = "prompts.journal"
_SKIPPED = "skipped.journal"


class Counts(BaseModel):
    """What a run has done so far; `skipped` counts by reason."""

    answers: int = 0
    finished: int = 0
    length: int = 0
    answer_tokens: int = 0
    skipped: dict[str, int] = {}


class Shard(BaseModel):
    """A finished shard."""

    name: str
    records: int
    bytes: int


class Manifest(BaseModel):
    """`manifest.json`; `complete` holds for `asked` conversations or rows, None for all rows."""

    settings: Settings
    counts: Counts
    shards: list[Shard]
    asked: int | None = None
    complete: bool


@dataclass(frozen=True)
class _Place:
    """Where the last record of a conversation is: shard number, byte offset."""

    shard: int
    offset: int


@dataclass
class _Contents:
    counts: Counts = field(default_factory=Counts)
    last: dict[str, _Place] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    prompts: dict[str, str] = field(default_factory=dict)


class Store:
    """The directory, locked for one process; a context manager.

    Opening it creates the directory or goes on with what it holds. `asked` is how many
    conversations or rows the run is for, None for all rows; it may grow from run to run. Raises
    FastMTPError when another run holds it, it was written with other settings, or a finished shard
    is damaged.
    """

    def __init__(
        self, directory: Path, settings: Settings, shard_size: int, asked: int | None
    ) -> None:
        self.directory = directory
        self.is_complete = False  # known once it is entered: nothing is left to ask
        self._settings = settings
        self._asked = asked
        self._shard_size = shard_size
        self._contents = _Contents()
        self._shards: list[Shard] = []
        self._in_journal = 0
        self._files: dict[str, BinaryIO] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Store":
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FastMTPError(
                f"--output {self.directory}: cannot be created ({error.strerror}); give another"
            ) from error
        with contextlib.ExitStack() as stack:
            self._lock(stack)
            self._check_settings()
            self._recover(stack)
            self._write_manifest(complete=self.is_complete)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def counts(self) -> Counts:
        """What is in the directory, earlier runs included."""
        return self._contents.counts

    @property
    def entries(self) -> int:
        """Number of answers, prompts and skipped requests; grows with everything that is kept."""
        contents = self._contents
        return contents.counts.answers + len(contents.prompts) + len(contents.skipped)

    def last_record(self, conversation: str) -> Record | None:
        """Return the latest answered turn of a conversation, None if there is none."""
        place = self._contents.last.get(conversation)
        if place is None:
            return None
        path = self._shard_path(place.shard, finished=place.shard < len(self._shards))
        with path.open("rb") as file:
            file.seek(place.offset)
            return parse_record(file.readline(), f"{path}, byte {place.offset}")

    def has_answers(self, conversation: str) -> bool:
        """Tell whether any turn of a conversation is answered."""
        return conversation in self._contents.last

    def skip_reason(self, conversation: str) -> str | None:
        """Return why a conversation ended before its last turn, None if it did not."""
        return self._contents.skipped.get(conversation)

    def prompt(self, turn_id: str) -> str | None:
        """Return the user turn that the target wrote for this request, None if none is kept."""
        return self._contents.prompts.get(turn_id)

    @property
    def opening_prompts(self) -> Iterator[str]:
        """The kept self-written prompts that begin a conversation."""
        return (text for key, text in self._contents.prompts.items() if key.endswith("/0"))

    def add(self, record: Record) -> None:
        """Keep an answer; it is on the disk when this returns."""
        number = len(self._shards)
        journal = self._shard_path(number, finished=False).name
        offset = self._append(journal, record.line())
        self._count_record(record, _Place(number, offset))
        self._in_journal += 1
        if self._in_journal >= self._shard_size:
            self._finish_shard()
            self._write_manifest(complete=False)

    def add_prompt(self, turn_id: str, text: str) -> None:
        """Keep a user turn that the target wrote."""
        self._append(_PROMPTS, json_line({"id": turn_id, "text": text}))
        self._contents.prompts[turn_id] = text

    def skip(self, conversation: str, turn: int, reason: str, detail: str = "") -> None:
        """Note that a conversation ends at `turn` without an answer to it."""
        entry = {"conversation": conversation, "turn": turn, "reason": reason, "detail": detail}
        self._append(_SKIPPED, json_line(entry))
        self._count_skip(entry)

    def complete(self) -> None:
        """Turn the journal into the last shard and say so in the manifest."""
        if self._in_journal:
            self._finish_shard()
        self._write_manifest(complete=True)

    def _count_record(self, record: Record, place: _Place) -> None:
        counts = self._contents.counts
        counts.answers += 1
        counts.answer_tokens += len(record.answer_ids)
        if record.finish_reason == "length":
            counts.length += 1
        else:
            counts.finished += 1
        self._contents.last[record.conversation] = place

    def _count_skip(self, entry: dict[str, Any]) -> None:
        self._contents.skipped[entry["conversation"]] = entry["reason"]
        totals = Counter(self._contents.counts.skipped)
        totals[entry["reason"]] += 1
        self._contents.counts.skipped = dict(totals)

    def _append(self, name: str, line: bytes) -> int:
        """Append a line to a journal, return its offset."""
        if name not in self._files:
            self._files[name] = self._stack.enter_context((self.directory / name).open("ab"))
        file = self._files[name]
        offset = file.tell()
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            raise FastMTPError(
                f"--output {self.directory}: cannot write {name} ({error.strerror}); what is "
                "answered is kept: make room and run the same command again"
            ) from error
        return offset

    def _finish_shard(self) -> None:
        number = len(self._shards)
        journal = self._shard_path(number, finished=False)
        self._files.pop(journal.name).close()
        shard = self._shard_path(number, finished=True)
        journal.rename(shard)
        _flush_folder(self.directory)
        size = shard.stat().st_size
        self._shards.append(Shard(name=shard.name, records=self._in_journal, bytes=size))
        self._in_journal = 0

    def _write_manifest(self, *, complete: bool) -> None:
        manifest = Manifest(
            settings=self._settings,
            counts=self.counts,
            shards=self._shards,
            asked=self._asked,
            complete=complete,
        )
        text = manifest.model_dump_json(indent=2) + "\n"
        write_atomically(self.directory / MANIFEST, text.encode())

    def _shard_path(self, number: int, *, finished: bool) -> Path:
        return self.directory / f"shard-{number:05d}.{'jsonl' if finished else 'journal'}"

    def _lock(self, stack: contextlib.ExitStack) -> None:
        file = stack.enter_context((self.directory / ".lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FastMTPError(
                f"--output {self.directory}: another `fastmtp distill` writes there; wait for it, "
                "or give another directory"
            ) from None

    def _check_settings(self) -> None:
        path = self.directory / MANIFEST
        if not path.is_file():
            strangers = [file.name for file in self.directory.iterdir() if file.name != ".lock"]
            if strangers:
                raise FastMTPError(
                    f"--output {self.directory}: holds {sorted(strangers)[0]} and no {MANIFEST}, "
                    "so it is not a directory of `fastmtp distill`; give a new or an empty one"
                )
            return
        manifest = read_manifest(self.directory)
        if changed := differences(manifest.settings, self._settings):
            raise FastMTPError(
                f"--output {self.directory}: was written with other arguments: "
                f"{'; '.join(changed)}. Give the same ones to go on, or another directory"
            )
        self.is_complete = manifest.complete and manifest.asked == self._asked

    def _recover(self, stack: contextlib.ExitStack) -> None:
        """Read everything back, cutting torn lines off the journals."""
        known = {}
        if (self.directory / MANIFEST).is_file():
            known = {shard.name: shard for shard in read_manifest(self.directory).shards}
        while (path := self._shard_path(len(self._shards), finished=True)).is_file():
            records = self._read_shard(path)
            shard = Shard(name=path.name, records=records, bytes=path.stat().st_size)
            if shard != known.pop(path.name, shard):
                raise FastMTPError(f"{path}: was changed after it was finished; restore it")
            self._shards.append(shard)
        if known:
            raise FastMTPError(f"--output {self.directory}: lacks {min(known)}; restore it")
        journal = self._shard_path(len(self._shards), finished=False)
        if journal.is_file():
            _cut_torn_line(journal)
            self._in_journal = self._read_shard(journal)
        for entry in _read_journal(self.directory / _PROMPTS):
            self._contents.prompts[entry["id"]] = entry["text"]
        for entry in _read_journal(self.directory / _SKIPPED):
            self._count_skip(entry)

    def _read_shard(self, path: Path) -> int:
        number = len(self._shards)
        records = offset = 0
        with path.open("rb") as file:
            for line in file:
                record = parse_record(line, f"{path}, byte {offset}")
                self._count_record(record, _Place(number, offset))
                offset += len(line)
                records += 1
        return records


def read_manifest(directory: Path) -> Manifest:
    """Read `manifest.json`; raises FastMTPError when it is missing or no manifest."""
    path = directory / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise FastMTPError(f"{path}: not a manifest of `fastmtp distill` ({error})") from error


def _read_journal(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        _cut_torn_line(path)
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line)


def _cut_torn_line(path: Path) -> None:
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


def _flush_folder(directory: Path) -> None:
    """Make a rename survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
