"""What is asked: conversations of a task, from files, from `datasets`, or of a given size.

A source is one of

    FILE.jsonl      `{"id"?, "task"?, "system"?, "turns"}` a line, or messages, or prompt
    FILE.json       a list of the same, or of ShareGPT's `conversations`
    DIRECTORY       all its .jsonl files
    hub:NAME        a task of the paper through `datasets` (see `hub.py`)
    datasets:NAME[?config=C&split=S&column=FIELD&data_files=F]

and may be given another task name as NAME=SOURCE. Only system messages and user turns are taken:
the served model answers the turns itself.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastmtp_benchmarks.task import Conversation, Task
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.conversations import BadRowError, parse_conversation
from fastmtp_sglang.files.jsonl import read_json, read_jsonl
from fastmtp_sglang.files.labels import split_label

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}")
_DATASETS = "datasets:"
HUB = "hub:"


def load_tasks(sources: Sequence[str], limit: int | None = None) -> list[Task]:
    """Read tasks in the order of their first appearance.

    Args:
        sources: See the module's docstring.
        limit: Conversations per task, the first ones; None for all.

    Raises:
        FastMTPError: A source is missing, empty or not understood, a task's name is too long, or
            two conversations of a task share an id.
    """
    found: dict[str, list[Conversation]] = {}
    for source in sources:
        for task, conversation in _read(source, limit):
            members = found.setdefault(task, [])
            if limit is None or len(members) < limit:
                members.append(conversation)
    tasks = []
    for name, members in found.items():
        if len(name) > _LONGEST_NAME:
            raise FastMTPError(
                f"--task: the task {name[:_LONGEST_NAME]}... has a name of {len(name)} letters, "
                f"and {_LONGEST_NAME} are the most: give it another one, NAME=SOURCE"
            )
        (repeated, times), *_ = Counter(member.id for member in members).most_common(1)
        if times > 1:
            raise FastMTPError(
                f"--task: the task {name} has {times} conversations with the id {repeated!r}, so "
                "their answers could not be told apart: give each its own id, or one source a name "
                "of its own, NAME=SOURCE"
            )
        tasks.append(Task(name, tuple(members)))
    return tasks


def _read(source: str, limit: int | None) -> Iterator[tuple[str, Conversation]]:
    name, place = split_label(source)
    if name is not None and not _NAME.fullmatch(name):
        raise FastMTPError(
            f"--task {source}: no such file, and {name!r} is no name of letters, digits, blanks "
            "and . _ + -"
        )
    if place.startswith(HUB):
        from fastmtp_benchmarks.hub import hub_task

        task = hub_task(place.removeprefix(HUB))
        yield from ((name or task.name, member) for member in task.conversations)
    elif place.startswith(_DATASETS):
        from fastmtp_sglang.vocabulary.sources import DatasetSource

        opened = DatasetSource(f"--task {source}", None, place.removeprefix(_DATASETS), _no_tokens)
        rows = itertools.islice(opened.read(), limit or _MAX_ROWS)
        yield from _conversations(source, rows, name, Path(opened.name).name, opened.column)
    elif Path(place).is_dir():
        files = sorted(file for file in Path(place).glob("*.jsonl") if file.is_file())
        if not files:
            raise FastMTPError(f"--task {source}: the directory holds no .jsonl file")
        for file in files:
            yield from _conversations(str(file), _rows(str(file), file), name, file.stem)
    else:
        path = Path(place)
        yield from _conversations(source, _rows(source, path), name, path.stem)


# Names head the columns of a report.
_LONGEST_NAME = 100
# Nobody asks more of one task, and some data sets have millions of rows.
_MAX_ROWS = 20_000


def _conversations(
    source: str, rows: Iterable[Any], name: str | None, stem: str, column: str | None = None
) -> Iterator[tuple[str, Conversation]]:
    """Yield (task, conversation); `name` wins over a row's own task, which wins over `stem`."""
    number = -1
    for number, row in enumerate(rows):
        try:
            parsed = parse_conversation(row, column)
        except BadRowError as error:
            raise FastMTPError(f"--task {source}: row {number + 1} {error}") from error
        task = name or (row.get("task") if isinstance(row.get("task"), str) else None) or stem
        given = next((row[key] for key in ("id", "question_id") if key in row), None)
        yield (
            task,
            Conversation(
                id=str(number if given is None else given),
                turns=tuple(parsed.turns),
                system=parsed.system,
            ),
        )
    if number < 0:
        raise FastMTPError(f"--task {source}: holds no conversation")


def _rows(source: str, path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise FastMTPError(
            f"--task {source}: no such file or directory; a data set is named as {_DATASETS}NAME, "
            f"a task of the paper as {HUB}NAME"
        )
    if path.suffix not in (".jsonl", ".json"):
        raise FastMTPError(f"--task {source}: give a .jsonl or a .json file, or {_DATASETS}NAME")
    if path.suffix == ".jsonl":
        yield from (row.content for row in read_jsonl(path, name=f"--task {source}"))
        return
    content = read_json(path, name=f"--task {source}")
    if not isinstance(content, list):
        raise FastMTPError(f"--task {source}: must hold a list of conversations")
    yield from content


def _no_tokens(text: str) -> list[int]:
    raise AssertionError("conversations are tokenized by the chat template")
