"""A cell's figures in one row, worked out by hand, and beside its baseline's.

Alone: pytest tests/benchmarks/test_rows.py
"""

import pytest

from fastmtp_benchmarks.records import SpecCounters
from fastmtp_benchmarks.rows import is_greedy, make_row
from fastmtp_benchmarks.store import Cell


def test_a_row(cell):
    # 21 tokens: 3 s against 2 s; decoding 20 tokens: 2 s against 1 s.
    baseline = cell()
    base = make_row(baseline, baseline)
    row = make_row(cell("fastmtp", speed=20), baseline)
    assert (row.tokens_per_second, row.request_tokens_per_second) == (10.5, 10.5)
    assert (row.decode_tokens_per_second, row.speedup, row.decode_speedup) == (20.0, 1.5, 2.0)
    assert row.speedup_interval == (1.5, 1.5)
    assert (row.acceptance_length, row.acceptance_per_step) == (2.4, [0.8, 0.4, 0.2])
    assert (row.identical, row.pairs, row.requests, row.failed) == (6, 6, 6, 0)
    assert (row.output_tokens, row.prompt_tokens, row.in_flight) == (126, 18, 1.0)
    assert row.first_token_milliseconds["p50"] == 1000
    assert row.inter_token_milliseconds["p99"] == pytest.approx(50)
    assert (base.speedup, base.acceptance_length, base.counters_missing) == (1.0, None, 0)


def test_sampled_answers_need_not_agree(cell):
    settings = {"sampling": {"temperature": 0.7}}
    baseline, other = cell(settings=settings), cell("fastmtp", settings=settings)
    assert (is_greedy(cell()), is_greedy(other)) == (True, False)
    row = make_row(other, baseline)
    assert (row.identical, row.speedup) == (None, 1.0)


def test_a_server_that_counts_in_total_only(cell):
    counters = SpecCounters(verifications=10, accepted_drafts=5, histogram=[5, 5])
    base = cell()
    other = Cell(cell("vllm", server_counters=counters).info, base.records)
    row = make_row(other, None)
    assert (row.acceptance_length, row.counters_missing) == (1.5, 0)
    assert row.acceptance_length_interval is None
    assert row.speedup is None


def test_of_many_differences_the_first_are_shown(cell):
    base, other = cell(), cell("fastmtp")
    for one, answer in ((base, [0, 1]), (other, [0, 999])):
        one.records[:] = [
            one.records[0].model_copy(update={"prompt_id": str(number), "token_ids": answer})
            for number in range(18)
        ]
    row = make_row(other, base)
    assert (row.pairs, row.identical) == (18, 0)
    assert [difference.prompt_id for difference in row.differences] == [str(i) for i in range(10)]
    assert {difference.position for difference in row.differences} == {1}


def test_the_load_in_words(cell):
    rate = {"concurrency": None, "request_rate": 0.5}
    levels = [make_row(cell(**fields), None).level for fields in ({"concurrency": 8}, rate)]
    assert levels == ["concurrency 8", "0.5 arrivals per second"]


def test_a_run_that_took_no_time_has_no_speed(cell):
    """All of it failed at once: nothing is divided by zero."""
    base = cell(wall_seconds=0.0)
    failed = [r.model_copy(update={"error": "x", "output_tokens": None}) for r in base.records]
    row = make_row(Cell(base.info, failed), None)
    assert (row.failed, row.in_flight, row.tokens_per_second) == (6, None, None)
