"""DP attention: two ranks attend to requests of their own, and both compute all other layers.

Answers are those of one rank without speculation, whichever rank has a request, also where one of
them has none. With --enable-dp-lm-head each rank drafts over its own requests' lists; without it
all tokens are scored.
Run alone: pytest -m slow tests/served/test_attention_ranks.py (starts four servers of two ranks).
"""

import pytest
from client import acceptance_length, assert_equal, generate_kinds
from features import GRAMMARS

pytestmark = pytest.mark.slow

FIELDS = (
    {},
    {"repetition_penalty": 1.3},
    {"temperature": 0.9, "top_p": 0.8, "top_k": 50, "sampling_seed": 12},
    GRAMMARS[0],
)


@pytest.mark.parametrize("kind", ["", "-masked", "-listed", "-tree"])
def test_equal(servers, kind):
    base = generate_kinds(servers("qwen3"), FIELDS, 24, 8)
    for concurrency in (1, 8):
        fast = generate_kinds(servers(f"qwen3-ranks{kind}"), FIELDS, 24, concurrency)
        assert_equal(fast, base)
        if kind:
            assert acceptance_length(fast) > 2
