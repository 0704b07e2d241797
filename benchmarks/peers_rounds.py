"""Rounds over systems that take turns, and what their pairs say.

A block is all systems on one batch size in one round: its measurements are seconds apart, so a
machine whose speed wanders meets all of them alike, and only ratios within a block are taken.
Finished blocks are kept in a file, and the same command goes on where an earlier run was stopped.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmtp_benchmarks.peers_systems import System
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import write_atomically

# Small batches answer several times, so that one prompt's acceptance is not the figure.
FEWEST_PROMPTS = 8
_WARM_UP_TOKENS = 8

Key = tuple[str, str]  # system, dtype


@dataclass(frozen=True)
class Measurement:
    """One system's turn in a block.

    Attributes:
        tokens: New tokens of all answers.
        seconds: For all of them, prompts included.
        answers: A digest of the ids of each answer.
        verifications: SGLang's counter over all answers, 0 without speculation.
    """

    round: int
    batch: int
    system: str
    dtype: str
    tokens: int
    seconds: float
    answers: list[str]
    verifications: int
    accepted_drafts: int

    @property
    def key(self) -> Key:
        """What a row is about."""
        return self.system, self.dtype

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


class Blocks:
    """The finished blocks of a run, in a file if `path` is given.

    Its first line is `settings`, whatever figures depend on; raises FastMTPError where the file
    was begun with other settings.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.measurements: list[Measurement] = []
        self._path = path
        self._lines = [json.dumps(settings)]
        if path is None or not path.exists():
            return
        first, *self._lines[1:] = path.read_text().splitlines()
        for name, before in json.loads(first).items():
            if settings[name] != before:
                raise FastMTPError(
                    f"--output: {path} was begun with {name} {before!r}, and now it is "
                    f"{settings[name]!r}: give another --output, or remove that file"
                )
        for block in self._lines[1:]:
            self.measurements += [Measurement(**fields) for fields in json.loads(block)]

    def has(self, round: int, batch: int) -> bool:
        """Whether a block is finished."""
        return any((one.round, one.batch) == (round, batch) for one in self.measurements)

    def add(self, block: list[Measurement]) -> None:
        """Keep a finished block."""
        self.measurements += block
        self._lines.append(json.dumps([asdict(one) for one in block]))
        if self._path is not None:
            write_atomically(self._path, "\n".join(self._lines).encode())

    def discard(self) -> None:
        """Remove the file."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def run_rounds(
    systems: Sequence[System],
    prompts: Sequence[list[int]],
    *,
    batch_sizes: Sequence[int],
    rounds: int,
    tokens: int,
    blocks: Blocks,
    say: Callable[[str], None],
) -> None:
    """Measure what `blocks` lacks; each round another system has the first turn.

    `prompts` are token ids, at least as many as the largest batch. Raises FastMTPError when a
    system does not answer with exactly `tokens` ids.
    """
    warm: set[int] = set()
    for number in range(rounds):
        for batch in batch_sizes:
            if blocks.has(number, batch):
                continue
            able = [one for one in systems if batch <= (one.largest_batch or batch)]
            if batch not in warm:
                for system in able:
                    _answer(system, prompts[:batch], min(tokens, _WARM_UP_TOKENS))
                warm.add(batch)
            shift = number % len(able)
            block = [
                _turn(system, prompts, batch, tokens, number)
                for system in [*able[shift:], *able[:shift]]
            ]
            blocks.add(block)
            speeds = ", ".join(f"{' '.join(one.key)} {one.speed:.1f}" for one in block)
            say(f"round {number + 1} of {rounds}, batch {batch}, tokens/s: {speeds}")


def _turn(
    system: System, prompts: Sequence[list[int]], batch: int, tokens: int, round: int
) -> Measurement:
    chosen = prompts[: max(batch, min(FEWEST_PROMPTS, len(prompts)) // batch * batch)]
    began = time.perf_counter()
    parts = [
        _answer(system, chosen[first : first + batch], tokens)
        for first in range(0, len(chosen), batch)
    ]
    seconds = time.perf_counter() - began
    ids = [answer for part in parts for answer in part.ids]
    return Measurement(
        round=round,
        batch=batch,
        system=system.name,
        dtype=system.dtype,
        tokens=tokens * len(ids),
        seconds=seconds,
        answers=[hashlib.sha256(json.dumps(one).encode()).hexdigest()[:16] for one in ids],
        verifications=sum(part.verifications for part in parts),
        accepted_drafts=sum(part.accepted_drafts for part in parts),
    )


def _answer(system: System, prompts: Sequence[list[int]], tokens: int) -> Any:
    answers = system.answer(prompts, tokens)
    lengths = [len(ids) for ids in answers.ids]
    if lengths != [tokens] * len(prompts):
        raise FastMTPError(
            f"{system.label} answered {len(prompts)} prompts with {lengths} tokens instead of "
            f"{tokens} each, so its speed says nothing: leave it out of --systems"
        )
    return answers


@dataclass(frozen=True)
class PeerRow:
    """One system at one batch size, over all rounds.

    Attributes:
        tokens_per_second: Median over rounds.
        ratio_to_transformers: Median over rounds of the ratio within a block, None without it.
        ratio_quartiles: First and third, over rounds.
        acceptance_length: 1 + accepted drafts / verifications, None where nothing was verified.
        identical_to_transformers: How many answers are, and of how many.
    """

    system: str
    dtype: str
    batch: int
    tokens_per_second: float
    ratio_to_transformers: float | None
    ratio_quartiles: tuple[float, float] | None
    acceptance_length: float | None
    identical_to_transformers: tuple[int, int] | None


def make_rows(measurements: Sequence[Measurement]) -> list[PeerRow]:
    """Return the rows by batch size, systems in the order of their first turn."""
    keys = list(dict.fromkeys(one.key for one in measurements))
    batches = sorted({one.batch for one in measurements})
    return [
        _row([one for one in measurements if (one.key, one.batch) == (key, batch)], measurements)
        for batch in batches
        for key in keys
        if any((one.key, one.batch) == (key, batch) for one in measurements)
    ]


def _row(own: Sequence[Measurement], measurements: Sequence[Measurement]) -> PeerRow:
    pairs = [
        (one, other)
        for one in own
        for other in measurements
        if other.system == "transformers" and (other.round, other.batch) == (one.round, one.batch)
    ]
    low = ratio = high = None
    if pairs:
        ratios = [one.speed / other.speed for one, other in pairs]
        low, ratio, high = (round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
    verifications = sum(one.verifications for one in own)
    accepted = sum(one.accepted_drafts for one in own)
    first = own[0]
    return PeerRow(
        system=first.system,
        dtype=first.dtype,
        batch=first.batch,
        tokens_per_second=round(statistics.median(one.speed for one in own), 2),
        ratio_to_transformers=ratio,
        ratio_quartiles=None if low is None or high is None else (low, high),
        acceptance_length=round(1 + accepted / verifications, 3) if verifications else None,
        identical_to_transformers=_equal(pairs) if pairs else None,
    )


def identical(measurements: Sequence[Measurement], one: str, other: str) -> tuple[int, int] | None:
    """Return how many answers of two systems are equal and of how many; None without pairs."""
    pairs = [
        (a, b)
        for a in measurements
        for b in measurements
        if (a.system, b.system) == (one, other) and (a.round, a.batch) == (b.round, b.batch)
    ]
    return _equal(pairs) if pairs else None


def _equal(pairs: Sequence[tuple[Measurement, Measurement]]) -> tuple[int, int]:
    same = [x == y for a, b in pairs for x, y in zip(a.answers, b.answers, strict=True)]
    return sum(same), len(same)
