"""Cleaning of distillation data: heuristics, near duplicates, mixing; what was dropped and why.

Files are read twice: once to decide, once to copy what is kept, so that memory holds an index and
the sketches of the de-duplication, not the texts. The same files, settings and seed give the same
output, byte for byte. Ids are unique within a run of `fastmtp distill`; where two runs meet, the
later one's conversations get the prefix `run2/`.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fastmtp_sglang.distill.dedup import Contamination, NearDuplicates
from fastmtp_sglang.distill.mixing import draw
from fastmtp_sglang.distill.quality import Limits, problem
from fastmtp_sglang.distill.records import MANIFEST, Record, check_record, json_line
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import replacing
from fastmtp_sglang.files.jsonl import read_jsonl

_EXAMPLES = 5
NEAR_DUPLICATE = "near duplicate"
_AFTER_DROPPED = "follows a dropped turn"
_NOT_DRAWN = "not drawn by the weights"
_IN_EVALUATION = "part of an evaluation"
_SAME = "same record twice"


@dataclass(frozen=True)
class CleanOptions:
    """How to clean.

    Attributes:
        limits: See `quality.py`.
        threshold: Similarity of near duplicates, None to keep them.
        weights: See `mixing.py`.
        total_tokens: Most answer tokens to keep, None for all.
        exclude: Prompts that must not be in the data.
        vocab_size: Of the target, None where it is not known; ids beyond it are an error.
        seed: Of sketches and draw.
    """

    limits: Limits
    threshold: float | None
    weights: dict[str, float]
    total_tokens: int | None
    exclude: list[str]
    vocab_size: int | None
    seed: int


@dataclass
class Tally:
    """Records and answer tokens; for dropped ones also the ids of the first few."""

    records: int = 0
    tokens: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, entry: "_Entry") -> None:
        """Count one record."""
        self.records += 1
        self.tokens += entry.tokens
        if len(self.examples) < _EXAMPLES:
            self.examples.append(entry.id)


@dataclass
class CleanReport:
    """What came in, what was dropped and why, what is left, each by reason or source."""

    read: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    dropped: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    kept: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))

    def summary(self) -> dict[str, Any]:
        """Return the report, ready for JSON."""

        def rows(tallies: dict[str, Tally], *, examples: bool) -> dict[str, Any]:
            return {
                name: {"records": tally.records, "answer_tokens": tally.tokens}
                | ({"examples": tally.examples} if examples else {})
                for name, tally in sorted(tallies.items())
            }

        return {
            "read": rows(self.read, examples=False),
            "dropped": rows(self.dropped, examples=True),
            "kept": rows(self.kept, examples=False),
        }


@dataclass(frozen=True)
class _Entry:
    """Where a record stands, and what it is called in the output."""

    file: int
    offset: int
    id: str
    conversation: str
    source: str
    tokens: int
    renamed: bool


class _Names:
    """Gives every record an id that is unique over all runs, and knows records by content."""

    def __init__(self, files: Sequence[Path]) -> None:
        folders = [file.parent.resolve() for file in files]
        # A folder of `fastmtp distill` is one run; any other file is one of its own.
        runs = [
            str(folder if (folder / MANIFEST).is_file() else file.resolve())
            for folder, file in zip(folders, files, strict=True)
        ]
        numbers = {run: number for number, run in enumerate(dict.fromkeys(runs), 1)}
        self._run_of_file = [numbers[run] for run in runs]
        self._owner: dict[str, int] = {}
        self._contents: set[tuple[str, bytes]] = set()

    def prefix(self, file: int, conversation: str) -> str:
        """Return what the ids of a conversation begin with in the output, mostly nothing."""
        run = self._run_of_file[file]
        return "" if self._owner.setdefault(conversation, run) == run else f"run{run}/"

    def is_new(self, record: Record) -> bool:
        """Tell whether this id with this answer is met for the first time."""
        text = f"{record.prompt_ids} {record.answer_ids}".encode()
        content = (record.id, hashlib.blake2b(text, digest_size=8).digest())
        if content in self._contents:
            return False
        self._contents.add(content)
        return True


def clean(
    files: Sequence[Path],
    output: Path,
    options: CleanOptions,
    *,
    prompt_end: Callable[[Record], str],
    on_progress: Callable[[int], None],
) -> CleanReport:
    """Write what is fit to learn from into `output`, in the order of the input.

    Args:
        files: JSON lines of `fastmtp distill`.
        output: Written at the end, or replaced.
        options: What to keep.
        prompt_end: Gives the end of a record's prompt as text, "" if unknown.
        on_progress: Called with the bytes read so far.

    Raises:
        FastMTPError: A line is no record of the target, or a weight does not fit the sources.
    """
    report = CleanReport()
    entries = _decide(files, options, report, prompt_end, on_progress)
    if options.weights or options.total_tokens is not None:
        entries = _mixed(entries, options, report)
    for entry in entries:
        report.kept[entry.source].add(entry)
    _write(files, entries, output)
    return report


def _decide(
    files: Sequence[Path],
    options: CleanOptions,
    report: CleanReport,
    prompt_end: Callable[[Record], str],
    on_progress: Callable[[int], None],
) -> list[_Entry]:
    """Return the records that pass on their own and are no duplicates."""
    duplicates = None
    if options.threshold is not None:
        duplicates = NearDuplicates(options.threshold, options.seed)
    evaluation = Contamination(options.exclude)
    spoiled: dict[str, int] = {}  # conversation -> turn after which its history is degenerate
    names = _Names(files)
    kept: list[_Entry] = []
    for entry, record in _read(files, names, options.vocab_size, on_progress):
        report.read[entry.source].add(entry)
        history = [message.content for message in record.messages]
        said = history[-1] if history else ""
        if not names.is_new(record):
            reason: str | None = _SAME
        elif record.turn > spoiled.get(entry.conversation, record.turn):
            reason = _AFTER_DROPPED
        elif reason := problem(record, options.limits, prompt_end(record)):
            spoiled.setdefault(entry.conversation, record.turn)
        elif any(evaluation.holds(text) for text in (*history, record.answer)):
            reason = _IN_EVALUATION
        elif duplicates is not None and duplicates.seen(f"{said}\n{record.answer}"):
            reason = NEAR_DUPLICATE
        if reason is None:
            kept.append(entry)
        else:
            report.dropped[reason].add(entry)
    return kept


def _read(
    files: Sequence[Path],
    names: _Names,
    vocab_size: int | None,
    on_progress: Callable[[int], None],
) -> Iterator[tuple[_Entry, Record]]:
    before = 0
    for number, path in enumerate(files):
        for row in read_jsonl(path):
            record = check_record(row.content, row.place)
            ids = [*record.prompt_ids, *record.answer_ids]
            if vocab_size is not None and ids and not 0 <= min(ids) <= max(ids) < vocab_size:
                raise FastMTPError(
                    f"{row.place}: holds token ids from {min(ids)} to {max(ids)}, but the target "
                    f"has {vocab_size}: give the --model that wrote them"
                )
            prefix = names.prefix(number, record.conversation)
            entry = _Entry(
                file=number,
                offset=row.start,
                id=prefix + record.id,
                conversation=prefix + record.conversation,
                source=record.source,
                tokens=len(record.answer_ids),
                renamed=bool(prefix),
            )
            yield entry, record
            on_progress(before + row.end)
        before += path.stat().st_size


def _mixed(entries: list[_Entry], options: CleanOptions, report: CleanReport) -> list[_Entry]:
    tokens: dict[str, dict[str, int]] = {source: {} for source in report.read}
    for entry in entries:
        of_source = tokens[entry.source]
        of_source[entry.conversation] = of_source.get(entry.conversation, 0) + entry.tokens
    if options.weights and (empty := sorted(name for name, of in tokens.items() if not of)):
        wanted = [name for name in empty if options.weights.get(name, 0) > 0]
        if wanted:
            raise FastMTPError(
                f"--weight {wanted[0]}={options.weights[wanted[0]]:g}: every record of that source "
                "was dropped, so no mixture can hold it; give it 0, or loosen what drops them"
            )
    chosen = draw(tokens, options.weights, options.total_tokens, options.seed)
    for entry in entries:
        if entry.conversation not in chosen:
            report.dropped[_NOT_DRAWN].add(entry)
    return [entry for entry in entries if entry.conversation in chosen]


def _write(files: Sequence[Path], entries: Sequence[_Entry], output: Path) -> None:
    """Copy the lines of `entries`; `output` appears whole or not at all."""
    with replacing(output) as out:
        for number, path in enumerate(files):
            with path.open("rb") as file:
                _copy(file, [entry for entry in entries if entry.file == number], out)


def _copy(file: BinaryIO, entries: Sequence[_Entry], out: BinaryIO) -> None:
    for entry in entries:
        file.seek(entry.offset)
        line = file.readline()
        if entry.renamed:
            content = json.loads(line) | {"id": entry.id, "conversation": entry.conversation}
            out.write(json_line(content))
        else:
            out.write(line.rstrip(b"\r\n") + b"\n")
