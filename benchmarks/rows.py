"""A row of `summary.json`: one configuration on one task at one load level."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel

from fastmtp_benchmarks import metrics
from fastmtp_benchmarks.bootstrap import Interval
from fastmtp_benchmarks.store import Cell

# A summary shows where answers differ; the request files hold the rest.
_DIFFERENCES_SHOWN = 10


class Difference(BaseModel):
    """An answer that is not the baseline's: where, and the first differing position."""

    prompt_id: str
    turn: int
    position: int


class Row(BaseModel):
    """Figures of one cell; None is "not reported" or "nothing to compare with".

    Attributes:
        concurrency: Conversations in flight; None at a Poisson rate.
        request_rate: Conversations begun per second; None at fixed concurrency.
        num_steps: K, the largest with --speculative-adaptive.
        top_k: Branches of a tree, 1 for a chain.
        requests: Turns asked, failed ones included.
        failed: Turns without an answer; left out of every figure but `wall_seconds`, and so
            `tokens_per_second`, in which `lost_seconds` passed.
        errors: Reason -> how many of them.
        retried: Answered turns that took more than one attempt.
        lost_seconds: What failed requests and the pauses before the next took, of all turns.
        conversations_left_out: Not begun, because of the time limit.
        in_flight: Mean number of requests in flight: lower than the concurrency when there are
            too few conversations.
        cache_flushed: Whether the prefix cache was emptied before.
        acceptance_length: Tokens per verification, 1 + accepted drafts / verifications.
        acceptance_per_step: Share of verifications that accepted the draft of step 1, 2, ...
        counters_missing: Answers of more than one token without speculation counters.
        tokens_per_second: Output tokens of all requests per second of the run, prefill, failed
            requests and pauses included.
        request_tokens_per_second: Output tokens per second of one request, prefill included.
        decode_tokens_per_second: The same from the first chunk on, without prefill.
        first_token_milliseconds: From sending to the first chunk: mean, p50, p90, p99.
        inter_token_milliseconds: Between tokens after the first chunk: mean, p50, p90, p99.
        stalled_share: Share of the decoding time in gaps of more than ten times the median gap
            between chunks: a sign of other programs on the machine.
        speedup: Request speed over the baseline's, for the same prompts, prefill included.
        decode_speedup: The same without prefill.
        pairs: Turns behind the speedups: the same prompt, answered by both.
        diverged: Turns left out, since an earlier answer made their prompt another one.
        identical: Of `pairs`, answers equal to the baseline's; None if they were sampled.
        differences: The first of those that are not.
    """

    task: str
    configuration: str
    concurrency: int | None
    request_rate: float | None = None
    num_steps: int | None = None
    top_k: int | None = None
    vocabulary_size: int | None = None
    requests: int
    failed: int
    errors: dict[str, int] = {}
    retried: int = 0
    lost_seconds: float = 0.0
    conversations_left_out: int = 0
    prompt_tokens: int
    output_tokens: int
    wall_seconds: float
    in_flight: float | None = None
    cache_flushed: bool
    acceptance_length: float | None = None
    acceptance_length_interval: Interval | None = None
    acceptance_per_step: list[float] | None = None
    counters_missing: int = 0
    tokens_per_second: float | None = None
    request_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    first_token_milliseconds: dict[str, float] | None = None
    inter_token_milliseconds: dict[str, float] | None = None
    stalled_share: float | None = None
    speedup: float | None = None
    speedup_interval: Interval | None = None
    decode_speedup: float | None = None
    decode_speedup_interval: Interval | None = None
    pairs: int | None = None
    diverged: int | None = None
    identical: int | None = None
    differences: list[Difference] = []

    @property
    def level(self) -> str:
        """The load in words."""
        if self.request_rate is not None:
            return f"{self.request_rate:g} arrivals per second"
        return f"concurrency {self.concurrency}"


def make_row(cell: Cell, baseline: Cell | None) -> Row:
    """Compute a row; `baseline` is the same task and level of the baseline, itself included."""
    info = cell.info
    good = metrics.succeeded(cell.records)
    counters = metrics.total_counters(good) or info.server_counters
    num_steps = info.server.get("speculative_num_steps")
    interval = metrics.acceptance_interval(good)
    length = metrics.acceptance_length(counters)
    per_step = metrics.acceptance_per_step(counters, num_steps)
    tokens = sum(record.output_tokens or 0 for record in good)
    busy = sum(record.seconds or 0.0 for record in good)
    first = [r.first_token_seconds for r in good if r.first_token_seconds is not None]
    row = Row(
        task=info.task,
        configuration=info.configuration,
        concurrency=info.concurrency,
        request_rate=info.request_rate,
        num_steps=num_steps,
        top_k=info.server.get("speculative_eagle_topk"),
        vocabulary_size=info.vocabulary_size,
        requests=len(cell.records),
        failed=len(cell.records) - len(good),
        errors=Counter(record.error for record in cell.records if record.error is not None),
        retried=sum(record.attempts > 1 for record in good),
        lost_seconds=round(sum(record.lost_seconds for record in cell.records), 3),
        conversations_left_out=info.conversations_left_out,
        prompt_tokens=sum(record.prompt_tokens or 0 for record in good),
        output_tokens=tokens,
        wall_seconds=round(info.wall_seconds, 3),
        in_flight=_rounded(busy / info.wall_seconds, 2) if info.wall_seconds else None,
        cache_flushed=info.cache_flushed,
        acceptance_length=_rounded(length),
        acceptance_length_interval=_rounded_interval(interval),
        acceptance_per_step=None if per_step is None else [round(share, 4) for share in per_step],
        # Where a server counts in total only, no answer can have counters of its own.
        counters_missing=0
        if counters is None or info.server_counters is not None
        else metrics.counters_missing(good),
        tokens_per_second=_rounded(tokens / info.wall_seconds if tokens else None),
        request_tokens_per_second=_rounded(metrics.request_speed(good)),
        decode_tokens_per_second=_rounded(metrics.decode_speed(good)),
        first_token_milliseconds=metrics.percentiles(first, 1000),
        inter_token_milliseconds=metrics.percentiles(metrics.inter_token_latencies(good), 1000),
        stalled_share=_rounded(metrics.stalled_share(good)),
    )
    if baseline is not None:
        _compare(row, cell, baseline)
    return row


def _compare(row: Row, cell: Cell, baseline: Cell) -> None:
    paired = metrics.Paired.of(baseline.records, cell.records)
    row.pairs, row.diverged = len(paired.base), paired.diverged
    row.speedup = _rounded(paired.speedup)
    row.decode_speedup = _rounded(paired.decode_speedup)
    row.speedup_interval = _rounded_interval(paired.speedup_interval())
    row.decode_speedup_interval = _rounded_interval(paired.decode_speedup_interval())
    if is_greedy(cell) and is_greedy(baseline):
        differing = paired.differences()
        row.identical = row.pairs - len(differing)
        row.differences = [
            Difference(prompt_id=name, turn=turn, position=position)
            for name, turn, position in differing[:_DIFFERENCES_SHOWN]
        ]


def is_greedy(cell: Cell) -> bool:
    """Tell whether answers were not sampled, so that two runs must agree."""
    return not cell.info.settings.get("sampling", {}).get("temperature")


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def _rounded_interval(interval: Interval | None) -> Interval | None:
    return None if interval is None else (round(interval[0], 4), round(interval[1], 4))
