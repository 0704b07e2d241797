"""The directory of a benchmark: one cell per configuration, task and load level.

    requests/CELL.jsonl   a `Record` a line
    requests/CELL.json    `CellInfo`; written last, so a cell that has one is finished
    logs/, heads/         servers' logs; heads without the vocabulary beside them
    summary.json, report.md, plots/

A cell that was interrupted leaves nothing that counts as finished, and is measured again whole.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from fastmtp_benchmarks.records import Record, SpecCounters
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import write_atomically, write_json
from fastmtp_sglang.files.jsonl import read_json, read_jsonl


class CellInfo(BaseModel):
    """How a cell was measured.

    Attributes:
        settings: What its figures depend on; another run with the same ones need not repeat it.
        server: What the server said of itself.
        environment: See `environment.environment`.
        wall_seconds: From the first request to the last answer, warm-up excluded.
        conversations_left_out: Not begun, because of the time limit.
        cache_flushed: Whether the prefix cache was emptied after the warm-up.
        server_counters: Where a server counts in total only: its counters of this cell.
        vocabulary_size: Tokens of the largest draft list; None when drafting from all tokens.
    """

    model_config = ConfigDict(extra="forbid")

    configuration: str
    task: str
    concurrency: int | None
    request_rate: float | None
    settings: dict[str, Any]
    server: dict[str, Any]
    environment: dict[str, Any]
    wall_seconds: float
    conversations_left_out: int
    cache_flushed: bool
    server_counters: SpecCounters | None = None
    vocabulary_size: int | None = None

    @property
    def level(self) -> tuple[int | None, float | None]:
        """Concurrency and arrival rate, one of which is None."""
        return self.concurrency, self.request_rate


@dataclass(frozen=True)
class Cell:
    """A finished cell."""

    info: CellInfo
    records: list[Record]


class Store:
    """A benchmark's directory; created when something is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def _requests(self) -> Path:
        return self.directory / "requests"

    def info(self, name: str) -> CellInfo | None:
        """Return how the cell `name` was measured, None if it is not finished."""
        path = self._requests / f"{name}.json"
        if not path.is_file():
            return None
        return _checked(CellInfo, read_json(path), str(path))

    def save(self, name: str, cell: Cell) -> None:
        """Write a finished cell; the file that makes it finished comes last."""
        self._requests.mkdir(parents=True, exist_ok=True)
        marker = self._requests / f"{name}.json"
        marker.unlink(missing_ok=True)
        lines = (record.model_dump_json(exclude_defaults=True) for record in cell.records)
        text = "".join(f"{line}\n" for line in lines)
        write_atomically(self._requests / f"{name}.jsonl", text.encode())
        write_json(marker, cell.info.model_dump(mode="json"))

    def cells(self) -> list[Cell]:
        """Read all finished cells, the earliest measured first.

        Raises FastMTPError when there is none.
        """
        found = []
        for path in sorted(self._requests.glob("*.json")):
            info = self.info(path.stem)
            assert info is not None
            rows = read_jsonl(path.with_suffix(".jsonl"))
            found.append(Cell(info, [_checked(Record, row.content, row.place) for row in rows]))
        if not found:
            raise FastMTPError(
                f"{self.directory}: holds no finished measurement: give a directory that "
                "`fastmtp bench --output` has filled"
            )
        return sorted(found, key=lambda cell: cell.info.environment.get("date", ""))


_Kind = TypeVar("_Kind", bound=BaseModel)


def _checked(kind: type[_Kind], content: Any, place: str) -> _Kind:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "it"
        raise FastMTPError(
            f"{place}: not written by this version of `fastmtp bench` ({error.error_count()} "
            f"fields differ, the first: {field}: {first['msg']}): remove it to measure again"
        ) from error


def cell_name(configuration: str, task: str, level: object) -> str:
    """Return the name of a cell's files: its parts, and a digest of those that do not fit in it."""
    parts = [configuration, task, str(level)]
    fitting = [re.sub(r"[^A-Za-z0-9+._]+", "-", part).strip("-")[:64] for part in parts]
    if fitting != parts:
        fitting.append(hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8])
    return "--".join(fitting)


def ordered(found: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return `found` without repetitions: the wanted ones in their order, then the others."""
    unique = dict.fromkeys(found)
    return [name for name in wanted if name in unique] + [n for n in unique if n not in wanted]
