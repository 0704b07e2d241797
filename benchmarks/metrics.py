"""The arithmetic of a report: from records to figures.

Sums over sums, never means of ratios: a long answer weighs as much as its tokens do. Failed turns
are left out of every figure and are counted beside it. A figure whose inputs a server did not
report is None.

Decoding begins with the first chunk: its tokens belong to the prefill, the later ones to the time
between the first and the last chunk.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fastmtp_benchmarks.bootstrap import Interval, bootstrap
from fastmtp_benchmarks.records import Record, SpecCounters

Records = Sequence[Record]


def succeeded(records: Records) -> list[Record]:
    """Return the turns that were answered."""
    return [record for record in records if record.error is None]


def total_counters(records: Records) -> SpecCounters | None:
    """Add up the counters of all answers that have some; None if none has.

    The histogram is None unless every answer with counters has one.
    """
    told = [record.speculation for record in records if record.speculation is not None]
    if not told:
        return None
    histogram: list[int] | None = None
    if all(counters.histogram is not None for counters in told):
        histogram = [0] * max(len(counters.histogram or ()) for counters in told)
        for counters in told:
            for accepted, count in enumerate(counters.histogram or ()):
                histogram[accepted] += count
    return SpecCounters(
        verifications=sum(counters.verifications for counters in told),
        accepted_drafts=sum(counters.accepted_drafts for counters in told),
        histogram=histogram,
    )


def acceptance_length(counters: SpecCounters | None) -> float | None:
    """Return tokens per verification, 1 + accepted drafts / verifications."""
    if counters is None or not counters.verifications:
        return None
    return 1 + counters.accepted_drafts / counters.verifications


def acceptance_per_step(
    counters: SpecCounters | None, num_steps: int | None = None
) -> list[float] | None:
    """Return for each draft step the share of verifications that accepted its draft.

    A draft is accepted only after all before it, so the shares fall and add up to the acceptance
    length minus 1. `num_steps` is K: steps that were never accepted do not show in a histogram.
    """
    if counters is None or counters.histogram is None or not counters.verifications:
        return None
    histogram = counters.histogram
    steps = max(len(histogram) - 1, num_steps or 0)
    return [sum(histogram[step:]) / sum(histogram) for step in range(1, steps + 1)]


def counters_missing(records: Records) -> int:
    """Return how many answers of more than one token have no counters (a first one needs none)."""
    return sum((r.output_tokens or 0) > 1 and r.speculation is None for r in records)


def request_speed(records: Records) -> float | None:
    """Return tokens per second of one request, prefill and queueing included."""
    return _ratio(sum(map(_tokens, records)), sum(map(_seconds, records)))


def decode_speed(records: Records) -> float | None:
    """Return tokens per second of one request after its first chunk; None if not told by all."""
    if any(record.arrivals is None for record in records if record.seconds is not None):
        return None
    return _ratio(sum(map(_decode_tokens, records)), sum(map(_decode_seconds, records)))


def inter_token_latencies(records: Records) -> list[float] | None:
    """Return the seconds between tokens, one value per token after the first chunk.

    A chunk of n tokens that comes t after the one before counts as n times t / n. None where an
    endpoint does not say how many tokens its chunks hold.
    """
    gaps: list[float] = []
    for record in records:
        if record.arrivals is None:
            if record.seconds is not None:
                return None
            continue
        for (before, n), (now, m) in itertools.pairwise(record.arrivals):
            gaps += [(now - before) / (m - n)] * (m - n)
    return gaps


def stalled_share(records: Records) -> float | None:
    """Return the share of the decoding time that passed in gaps over ten times the median gap.

    Gaps are between chunks, so they need no token counts beyond `arrivals`.
    """
    gaps = [
        now - before
        for record in records
        for (before, _), (now, _) in itertools.pairwise(record.arrivals or ())
    ]
    if not gaps or not sum(gaps):
        return None
    longest = 10 * statistics.median(gaps)
    return sum(gap for gap in gaps if gap > longest) / sum(gaps)


def percentiles(values: Sequence[float] | None, scale: float = 1.0) -> dict[str, float] | None:
    """Return mean, p50, p90 and p99 of `values` times `scale`; None without values."""
    if not values:
        return None
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    named = {"mean": np.mean(values), "p50": p50, "p90": p90, "p99": p99}
    return {name: round(float(value) * scale, 4) for name, value in named.items()}


def acceptance_interval(records: Records) -> Interval | None:
    """Return the interval of the acceptance length."""
    told = [record for record in records if record.speculation is not None]
    verified, accepted = _per_conversation(
        told,
        lambda r: r.speculation.verifications if r.speculation else 0,
        lambda r: r.speculation.accepted_drafts if r.speculation else 0,
    )
    return bootstrap((accepted, verified), lambda a, v: 1 + a / v)


@dataclass(frozen=True)
class Paired:
    """The turns of two runs that asked the same and were both answered, in the same order.

    `diverged` counts turns whose question is no longer the same, since an earlier answer of the
    conversation differs.
    """

    base: list[Record]
    other: list[Record]
    diverged: int

    @classmethod
    def of(cls, base: Records, other: Records) -> Paired:
        """Pair by task, conversation and turn; turns that one of the two failed are left out."""
        known = {record.key: record for record in succeeded(base)}
        both = [(known[r.key], r) for r in succeeded(other) if r.key in known]
        same = [pair for pair in both if pair[0].prompt_digest == pair[1].prompt_digest]
        return cls([a for a, _ in same], [b for _, b in same], len(both) - len(same))

    @property
    def speedup(self) -> float | None:
        """Speed of the other over that of the base, prefill included."""
        base, other = request_speed(self.base), request_speed(self.other)
        return other / base if base and other else None

    @property
    def decode_speedup(self) -> float | None:
        """The same without prefill."""
        base, other = decode_speed(self.base), decode_speed(self.other)
        return other / base if base and other else None

    def speedup_interval(self) -> Interval | None:
        """Return the interval of `speedup`."""
        return self._interval(_tokens, _seconds)

    def decode_speedup_interval(self) -> Interval | None:
        """Return the interval of `decode_speedup`."""
        return (
            None if self.decode_speedup is None else self._interval(_decode_tokens, _decode_seconds)
        )

    def _interval(
        self, tokens: Callable[[Record], float], seconds: Callable[[Record], float]
    ) -> Interval | None:
        base = _per_conversation(self.base, tokens, seconds)
        other = _per_conversation(self.other, tokens, seconds)
        return bootstrap((*base, *other), lambda bn, bs, on, os: (on / os) / (bn / bs))

    def differences(self) -> list[tuple[str, int, int]]:
        """Return (conversation, turn, first differing position) of answers that are not equal."""
        positions = (
            (b.prompt_id, b.turn, b.first_difference(a))
            for a, b in zip(self.base, self.other, strict=True)
        )
        return [(name, turn, at) for name, turn, at in positions if at is not None]


def _tokens(record: Record) -> float:
    return record.output_tokens or 0


def _seconds(record: Record) -> float:
    return record.seconds or 0.0


def _decode_tokens(record: Record) -> float:
    return record.arrivals[-1][1] - record.arrivals[0][1] if record.arrivals else 0


def _decode_seconds(record: Record) -> float:
    return record.arrivals[-1][0] - record.arrivals[0][0] if record.arrivals else 0.0


def _per_conversation(records: Records, *values: Callable[[Record], float]) -> list[list[float]]:
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * len(values))
    for record in records:
        row = sums[record.task, record.prompt_id]
        for index, value in enumerate(values):
            row[index] += value(record)
    return [[row[index] for row in sums.values()] for index in range(len(values))]


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None
