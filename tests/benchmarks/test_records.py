"""What one turn holds: counters of drafts that were emitted, and where two answers part.

Alone: pytest tests/benchmarks/test_records.py
"""

import pytest

from fastmtp_benchmarks import metrics
from fastmtp_benchmarks.metrics import Paired
from fastmtp_benchmarks.records import SpecCounters


def counters(verified, accepted, histogram=None):
    return SpecCounters(verifications=verified, accepted_drafts=accepted, histogram=histogram)


def test_drafts_behind_the_end_were_not_emitted():
    """vllm#56101: K=3, every draft right, 6 tokens: 2.5 tokens a verification."""
    told = counters(2, 6, [0, 0, 0, 2]).emitted(5)
    assert metrics.acceptance_length(told) == 2.5
    assert told.histogram is None
    exact = counters(2, 3, [1, 0, 0, 1])
    assert exact.emitted(5) == exact
    assert counters(3, 2).emitted(2).accepted_drafts == 0


@pytest.mark.parametrize(
    ("one", "other", "position"),
    [
        ({"token_ids": [1, 2, 3]}, {"token_ids": [1, 2, 3]}, None),
        ({"token_ids": [1, 2, 3]}, {"token_ids": [1, 9, 3]}, 1),
        ({"token_ids": [1, 2, 3]}, {"token_ids": [1, 2]}, 2),
        ({"token_ids": [], "text": "x"}, {"token_ids": [1], "text": "x"}, 0),
        # One of the two has no ids: characters, reasoning first.
        ({"token_ids": [1], "text": "abc"}, {"text": "abd"}, 2),
        ({"reasoning": "hm", "text": "abc"}, {"reasoning": "hm", "text": "abc"}, None),
        ({"reasoning": "hm", "text": "abc"}, {"reasoning": "ha", "text": "abc"}, 1),
    ],
)
def test_first_difference(record, one, other, position):
    first, second = record(**one), record(**other)
    assert first.first_difference(second) == position
    assert Paired.of([first], [second]).differences() == (
        [] if position is None else [("a", 0, position)]
    )
