"""Expected tokens of each shape, from what was seen of it.

Alone: pytest tests/serving/adaptive/test_acceptance.py
"""

import pytest

from fastmtp_sglang.contract.tree_shape import PLAIN, TreeShape
from fastmtp_sglang.serving.adaptive.acceptance import Acceptance, Rates, Seen

ONE, TWO, TREE = (TreeShape.parse(text) for text in ("1x1", "2x1", "2x4x8"))


def test_expected_tokens():
    rates = Rates(2)
    assert rates.tokens(2) == 3  # nothing is known: as good as it gets
    rates.observe(Seen.all_of([0, 1, 2, 2], 2))
    # Three of four first drafts, two of three second ones.
    assert rates.tokens(0) == 1
    assert rates.tokens(1) == pytest.approx(1 + 3 / 4)
    assert rates.tokens(2) == pytest.approx(1 + 3 / 4 + 3 / 4 * 2 / 3)


def test_drafts_of_which_nothing_is_known_do_not_count():
    rates = Rates(2)
    rates.observe(Seen([1, 1, 0, 2], [1, 2, 2, 2]))
    assert rates.tokens(2) == pytest.approx(1 + 3 / 4 + 3 / 4 * 1 / 2)


def test_old_drafts_are_forgotten():
    rates = Rates(1)
    for count in (1, 0):
        for _ in range(2000):
            rates.observe(Seen.all_of([count], 1))
    assert rates.tokens(1) < 1.05


def test_what_fades_is_soon_outweighed():
    rates = Rates(2)
    for _ in range(300):
        rates.observe(Seen.all_of([2], 2))
    rates.fade(1, 8)
    rates.observe(Seen.all_of([1] * 8, 2))
    assert rates.tokens(2) == pytest.approx(1 + 1 + 1 / 2, abs=0.02)


def test_chains_share_what_was_seen_and_trees_have_their_own():
    acceptance = Acceptance((PLAIN, ONE, TWO, TREE))
    acceptance.observe({TWO: Seen.all_of([0, 2], 2), TREE: Seen.all_of([1, 2], 2)})
    assert [acceptance.tokens(shape) for shape in (PLAIN, ONE, TWO, TREE)] == [1, 1.5, 2, 2.5]
    acceptance.observe({ONE: Seen.all_of([0, 0], 1)})
    now = [acceptance.tokens(shape) for shape in (ONE, TWO, TREE)]
    assert now == pytest.approx([1.25, 1.5, 2.5], abs=0.01)


@pytest.mark.parametrize(
    ("used", "shown"),
    [
        (PLAIN, [PLAIN]),
        (ONE, [PLAIN, ONE]),
        (TreeShape.parse("1x4x5"), [PLAIN, ONE]),
        (TREE, [PLAIN, ONE, TWO, TREE]),
        (TreeShape.parse("2x4x3"), [PLAIN, ONE, TWO, TREE]),
    ],
)
def test_what_steps_of_a_shape_show(used, shown):
    assert [s for s in (PLAIN, ONE, TWO, TREE) if Acceptance.covers(used, s)] == shown


def test_what_the_shape_in_use_shows_does_not_fade():
    acceptance = Acceptance((PLAIN, ONE, TWO, TREE))
    for _ in range(100):
        acceptance.observe({TWO: Seen.all_of([2], 2), TREE: Seen.all_of([2], 2)})
    acceptance.fade(ONE, 1)
    acceptance.observe({TWO: Seen.all_of([0], 2), TREE: Seen.all_of([0], 2)})
    assert acceptance.tokens(ONE) > 1.98
    assert acceptance.tokens(TREE) == pytest.approx(1 + 1 / 2 + 1 / 2, abs=0.01)
