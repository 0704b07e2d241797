"""Draws of conversations: the proportions, the scarcest source, and one draw within a larger one.

Alone: pytest tests/distill/test_mixing.py
"""

import pytest

from fastmtp_sglang.distill.mixing import draw
from fastmtp_sglang.errors import FastMTPError

SEED = 20250918
# 300 conversations of 10 tokens, and 1,000 of 7.
TOKENS = {
    "chat": {f"chat-{i}": 10 for i in range(300)},
    "code": {f"code-{i}": 7 for i in range(1000)},
}


def shares(chosen: set[str]) -> dict[str, int]:
    return {
        source: sum(count for name, count in of.items() if name in chosen)
        for source, of in TOKENS.items()
    }


def test_tokens_stand_in_the_given_proportion():
    chosen = shares(draw(TOKENS, {"chat": 3, "code": 1}, 2000, SEED))
    assert chosen["chat"] == pytest.approx(1500, abs=10)
    assert chosen["code"] == pytest.approx(500, abs=7)


def test_the_scarcest_source_sets_the_size():
    """All of one, and nothing twice."""
    chosen = shares(draw(TOKENS, {"chat": 1, "code": 1}, None, SEED))
    assert chosen["chat"] == 3000
    assert chosen["code"] == pytest.approx(3000, abs=7)


def test_without_weights_everything_is_taken():
    everything = {name for of in TOKENS.values() for name in of}
    assert draw(TOKENS, {}, None, SEED) == everything


def test_a_larger_draw_holds_the_smaller_one_and_the_order_of_names_does_not_matter():
    weights = {"chat": 1.0, "code": 2.0}
    small, large = (draw(TOKENS, weights, total, SEED) for total in (900, 1800))
    assert small < large
    turned = {source: dict(reversed(of.items())) for source, of in reversed(TOKENS.items())}
    assert draw(turned, weights, 900, SEED) == small
    assert draw(TOKENS, weights, 900, SEED + 1) != small


def test_a_source_of_weight_zero_is_left_out():
    assert shares(draw(TOKENS, {"chat": 0, "code": 1}, 700, SEED)) == {"chat": 0, "code": 700}


def test_nothing_gives_nothing():
    assert draw({"chat": {}}, {}, None, SEED) == set()


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"chat": 1, "code": 1, "x": 2}, r"--weight x=2: no record of that source"),
        ({"chat": 1}, "--weight: the source code has none"),
        ({"chat": 0, "code": 0}, "--weight: all are 0"),
    ],
)
def test_weights_that_say_nothing_are_refused(weights, reason):
    with pytest.raises(FastMTPError, match=reason):
        draw(TOKENS, weights, None, SEED)
