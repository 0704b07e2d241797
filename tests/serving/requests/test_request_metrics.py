"""What a finished request and the server report, from counts worked out by hand."""

import pytest
from prometheus_client import REGISTRY

from fastmtp_sglang.serving.requests.request_metrics import StepCounters, correct


def stock() -> dict:
    """Ten tokens: one of the prefill, then verifications that accepted 0, 3, 2 and 0 drafts."""
    return {
        "completion_tokens": 10,
        "spec_verify_ct": 4,
        "spec_num_correct_drafts": 5,
        "spec_num_proposed_drafts": 12,
        "spec_accept_rate": 5 / 12,
        "spec_accept_length": 2.5,
        "spec_correct_drafts_histogram": [2, 0, 1, 1],
    }


def test_acceptance_from_raw_counts():
    meta = stock()
    correct(meta, 3, adaptive=False)
    assert meta["spec_accept_length"] == 1 + 5 / 4
    assert meta["spec_accepted_per_step"] == [2, 2, 1]
    assert meta["spec_accept_rate"] == 5 / 12


def test_everything_accepted_is_never_more_than_k_plus_one():
    meta = stock() | {"spec_verify_ct": 1, "spec_num_correct_drafts": 3, "spec_accept_length": 5.0}
    correct(meta, 3, adaptive=False)
    assert meta["spec_accept_length"] == 4


def test_steps_that_never_accepted_count_zero():
    meta = stock() | {"spec_num_correct_drafts": 0, "spec_correct_drafts_histogram": [4]}
    correct(meta, 3, adaptive=False)
    assert meta["spec_accept_length"] == 1
    assert meta["spec_accepted_per_step"] == [0, 0, 0]


def test_adaptive_does_not_claim_to_know_what_was_drafted():
    meta = stock()
    correct(meta, 3, adaptive=True)
    assert "spec_accept_rate" not in meta
    assert "spec_num_proposed_drafts" not in meta
    assert meta["spec_accept_length"] == 1 + 5 / 4


@pytest.mark.parametrize("meta", [{}, {"spec_verify_ct": 0}])
def test_nothing_is_reported_of_nothing(meta):
    before = dict(meta)
    correct(meta, 3, adaptive=False)
    assert meta == before


def test_counters_of_the_server():
    counters = StepCounters(adaptive=False)
    meta = stock()
    correct(meta, 3, adaptive=False)
    counters.count(meta)
    counters.count(meta)
    counters.count({})  # answered by the prefill alone

    def value(name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(f"fastmtp:{name}_total", labels)

    assert value("verifications") == 8
    assert [value("accepted_tokens", step=str(i)) for i in (1, 2, 3)] == [4, 4, 2]
    assert [value("drafted_tokens", step=str(i)) for i in (1, 2, 3)] == [8, 8, 8]
