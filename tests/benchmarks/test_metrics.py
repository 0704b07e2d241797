"""The arithmetic, against records whose figures were worked out by hand.

Alone: pytest tests/benchmarks/test_metrics.py
"""

import pytest

from fastmtp_benchmarks import metrics
from fastmtp_benchmarks.metrics import Paired
from fastmtp_benchmarks.records import SpecCounters


def counters(verified, accepted, histogram=None):
    return SpecCounters(verifications=verified, accepted_drafts=accepted, histogram=histogram)


def test_acceptance_length_is_of_sums(record):
    # 10 verifications accept 10, 90 accept nothing: 1.1, while the mean of the two would be 1.5.
    records = [record("a", counters=(10, 10)), record("b", counters=(90, 0))]
    assert metrics.acceptance_length(metrics.total_counters(records)) == pytest.approx(1.1)


def test_what_is_not_told_is_none_and_not_one(record):
    assert metrics.total_counters([record()]) is None
    assert metrics.acceptance_length(None) is None
    assert metrics.acceptance_per_step(None) is None
    assert metrics.acceptance_length(counters(5, 0)) == 1.0


def test_acceptance_per_step_adds_up_to_the_length():
    # 10 verifications: 2 accept none, 3 one, 1 two, 4 three drafts: 17 drafts.
    told = counters(10, 17, [2, 3, 1, 4])
    assert metrics.acceptance_per_step(told) == [0.8, 0.5, 0.4]
    assert 1 + sum(metrics.acceptance_per_step(told)) == metrics.acceptance_length(told) == 2.7
    assert metrics.acceptance_per_step(counters(4, 0, [4]), 3) == [0.0, 0.0, 0.0]


def test_histograms_of_several_answers_are_added(record):
    records = [record("a", counters=(3, 2, [1, 2])), record("b", counters=(2, 3, [0, 1, 1]))]
    assert metrics.total_counters(records).histogram == [1, 3, 1]
    without = [*records, record("c", counters=(1, 0))]
    assert metrics.total_counters(without).histogram is None


def test_only_answers_of_one_token_need_no_counters(record):
    records = [
        record("a", [(1.0, 1)]),
        record("b", [(1.0, 1), (2.0, 2)]),
        record("c", [(1.0, 1), (2.0, 4)], counters=(1, 2)),
    ]
    assert metrics.counters_missing(records) == 1


def test_speeds_with_and_without_prefill(record):
    # 1 token after 1 s, then 8 in 2 s; and 3 tokens after 2 s, then 2 in 1 s.
    records = [
        record("a", [(1.0, 1), (2.0, 5), (3.0, 9)]),
        record("b", [(2.0, 3), (3.0, 5)]),
    ]
    assert metrics.request_speed(records) == pytest.approx(14 / 6)
    assert metrics.decode_speed(records) == pytest.approx(10 / 3)


def test_decode_speed_needs_to_know_what_chunks_hold(record):
    told = record("a", [(1.0, 1), (2.0, 5)])
    untold = record("b", output_tokens=9, seconds=3.0, first_token_seconds=1.0)
    assert metrics.decode_speed([told, untold]) is None
    assert metrics.inter_token_latencies([told, untold]) is None
    assert metrics.request_speed([told, untold]) == pytest.approx(14 / 5)


def test_inter_token_latency_is_per_token_not_per_chunk(record):
    gaps = metrics.inter_token_latencies([record("a", [(1.0, 1), (1.4, 5), (1.5, 6)])])
    assert gaps == pytest.approx([0.1] * 5)
    assert metrics.percentiles(gaps, 1000)["p50"] == pytest.approx(100)
    assert metrics.percentiles([]) is None


def test_stalls_are_gaps_of_ten_times_the_median(record):
    steady = [(0.1 * i, i) for i in range(1, 10)]
    assert metrics.stalled_share([record("a", steady)]) == 0
    stalled = [*steady, (0.9 + 1.2, 10)]
    assert metrics.stalled_share([record("a", stalled)]) == pytest.approx(1.2 / 2.0)
    assert metrics.stalled_share([record("a")]) is None


def test_nothing_to_divide_by(record):
    assert metrics.request_speed([]) is None
    assert metrics.decode_speed([record("a", [(1.0, 1)])]) is None


def test_speedup_is_over_what_both_answered(record):
    base = [
        record("a", [(2.0, 10)]),
        record("b", [(2.0, 10)]),
        record("c", error="HTTP 500", output_tokens=None),
        record("e", [(9.0, 1)]),
    ]
    other = [
        record("a", [(1.0, 10)]),
        record("b", error="no end after 1 s"),
        record("c", [(0.1, 10)]),
        record("f", [(9.0, 1)]),
    ]
    paired = Paired.of(base, other)
    assert [r.prompt_id for r in paired.base] == [r.prompt_id for r in paired.other] == ["a"]
    assert paired.speedup == pytest.approx(2.0)
    assert paired.decode_speedup is None  # one chunk each


def test_turns_after_a_difference_are_not_the_same_prompts(record):
    base = [
        record("a", [(1.0, 2)], prompt_digest="x"),
        record("a", [(1.0, 2)], turn=1, prompt_digest="y"),
    ]
    other = [
        record("a", [(1.0, 2)], prompt_digest="x"),
        record("a", [(1.0, 2)], turn=1, prompt_digest="z"),
    ]
    paired = Paired.of(base, other)
    assert (len(paired.base), paired.diverged) == (1, 1)


def test_intervals_hold_the_figure(record):
    base = [record(f"p{i}", [(1.0, 1), (2.0 + i / 10, 11)]) for i in range(20)]
    other = [record(f"p{i}", [(1.0, 1), (1.5 + i / 20, 11)]) for i in range(20)]
    paired = Paired.of(base, other)
    for value, interval in (
        (paired.speedup, paired.speedup_interval()),
        (paired.decode_speedup, paired.decode_speedup_interval()),
    ):
        assert interval[0] <= value <= interval[1]
    told = [record(f"p{i}", counters=(10, i)) for i in range(20)]
    low, high = metrics.acceptance_interval(told)
    assert 1.6 < low < 1.95 < high < 2.3
