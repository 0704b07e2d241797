"""DP attention: two ranks attend to requests of their own, and both compute all other layers.

Answers are those of one rank without speculation, whichever rank has a request, also where one of
them has none. With --enable-dp-lm-head each rank drafts over its own requests' lists; without it
all tokens are scored.
Run alone: pytest -m slow tests/served/test_attention_ranks.py (starts four servers of two ranks).
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from client import Answer, acceptance_length, assert_equal, generate
from features import GRAMMARS

pytestmark = pytest.mark.slow

FIELDS = (
    {},
    {"repetition_penalty": 1.3},
    {"temperature": 0.9, "top_p": 0.8, "top_k": 50, "sampling_seed": 12},
    GRAMMARS[0],
)


def ask(url: str, concurrency: int) -> list[Answer]:
    """24 requests of all kinds, of which every third is streamed."""

    def one(i: int) -> Answer:
        prompt = [5 + i, 7, *range(40, 40 + i % 9)]
        return generate(url, prompt, stream=i % 3 == 0, max_new_tokens=8 + i, **FIELDS[i % 4])

    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(one, range(24)))


@pytest.mark.parametrize("kind", ["", "-masked", "-listed", "-tree"])
def test_equal(servers, kind):
    base = ask(servers("qwen3"), 8)
    for concurrency in (1, 8):
        fast = ask(servers(f"qwen3-ranks{kind}"), concurrency)
        assert_equal(fast, base)
        if kind:
            assert acceptance_length(fast) > 2
