"""What is known about a size of batch: ratios of times, and when a look at a shape is void.

Every figure is worked out by hand. Alone: pytest tests/serving/adaptive/test_load.py
"""

import pytest

from fastmtp_sglang.contract.tree_shape import PLAIN, TreeShape
from fastmtp_sglang.serving.adaptive.load import PATIENCE, Load, Look

ONE, TWO, THREE = (TreeShape.of(k) for k in (1, 2, 3))
TREE = TreeShape.parse("3x2x6")


def load(best: TreeShape = TWO, *times: float) -> Load:
    made = Load(best, look_after=10)
    for seconds in times or (1.0, 1.0, 1.0):
        made.observe(best, seconds)
    return made


def test_times_go_where_they_belong():
    made = load()
    made.begin_look(THREE)
    assert made.trial == THREE
    made.observe(THREE, 2.0)
    made.observe(TWO, 1.5)  # of a step that was launched before the look
    made.observe(ONE, 9.0)  # of neither
    assert (list(made.times), made.look.times) == ([1.0, 1.0, 1.0, 1.5], [2.0])
    made.look.after = []  # the shape in use is back
    assert made.trial is None
    made.observe(TWO, 1.25)
    made.observe(THREE, 7.0)
    assert (made.look.after, made.look.times) == ([1.25], [2.0])
    assert made.times[-1] == 1.25


def test_one_slow_step_does_not_decide():
    made = load(TWO, 1.0, 1.0)
    assert not made.is_known()
    made.observe(TWO, 50.0)
    assert (made.is_known(), made.seconds()) == (True, 1.0)
    for _ in range(20):  # an old speed is forgotten
        made.observe(TWO, 3.0)
    assert made.seconds() == 3.0


def test_times_are_waited_for_with_patience():
    made = load()
    made.untimed = PATIENCE
    assert not made.waits_for_times()
    made.observe(TWO, 1.0)
    assert made.waits_for_times()


@pytest.mark.parametrize(
    ("after", "void"),
    [(None, False), ([], False), ([1.2] * 3, False), ([1.3] * 3, True), ([0.7, 0.7, 9], True)],
)
def test_a_look_is_void_if_the_machine_changed_its_speed(after, void):
    assert Look(THREE, before=[1.0, 1.0, 5.0], after=after).is_void() == void


def test_what_was_timed_is_known_and_the_rest_assumed():
    made = load(PLAIN)
    # A draft is 8 % of a plain step, a row 2 %, as long as no time says otherwise.
    assert made.ratio(TWO) == pytest.approx(1.2)
    made.ratios[ONE] = 1.3  # three times as dear as assumed
    assert made.ratio(ONE) == 1.3
    assert made.ratio(TWO) == pytest.approx(1.6)
    made.ratios[THREE] = 1.6  # twice as dear: what holds of all holds of this one
    assert made.ratio(TWO) == pytest.approx(1.4)
    made.ratios = {ONE: 1.01}
    assert made.ratio(TWO) == pytest.approx(1 + 0.1 * 0.2)


def test_a_step_that_does_more_takes_no_less():
    made = load(TWO)
    made.ratios[ONE] = 1.4  # timed on a bad day
    assert made.least_ratio(THREE) == made.ratio(THREE) == 1.4
    assert made.least_ratio(PLAIN) == 0.0
    assert made.ratio(PLAIN) == pytest.approx(1 / 1.2)


def looked(made: Load, shape: TreeShape, *times: float) -> Look:
    made.begin_look(shape)
    for seconds in times:
        made.observe(shape, seconds)
    return made.look


def test_a_ratio_is_to_the_time_around_the_look():
    made = load(ONE)
    look = looked(made, THREE, 3.0, 3.0, 3.0)
    assert made.look_ratio(look) == 3.0
    look.after = [1.21] * 3
    assert made.look_ratio(look) == pytest.approx(3 / 1.1)


def test_a_ratio_follows_from_what_the_shapes_do():
    """Noise must not make a larger shape the faster one, nor a smaller one the slower."""
    made = load(TWO)
    assert made.look_ratio(looked(made, THREE, 0.9)) == 1.0
    assert made.look_ratio(looked(made, ONE, 1.1)) == 1.0


def test_a_look_without_times_says_what_is_assumed():
    made = load(PLAIN)
    assert made.look_ratio(looked(made, TWO)) == pytest.approx(1.2)
    unknown = Load(PLAIN, look_after=10)
    assert unknown.look_ratio(looked(unknown, TWO, 7.0)) == pytest.approx(1.2)


def test_a_shape_that_cannot_pay_is_left_after_a_step():
    made = load(ONE)
    look = looked(made, THREE, 4.0)
    assert made.is_too_slow(look, most_gain=2.0)
    assert not made.is_too_slow(look, most_gain=3.0)
    look.times.append(1.0)  # the first one was an accident
    assert not made.is_too_slow(look, most_gain=2.0)
    assert not made.is_too_slow(Look(THREE), most_gain=2.0)


def test_the_shape_in_use_is_timed_again_after_a_look():
    made = load(ONE)
    look = looked(made, THREE, 2.0, 2.0, 2.0)
    assert made.is_timed(look)
    assert made.needs_comparison(look)
    look.after = [1.0, 1.0]
    assert made.needs_comparison(look)
    look.after.append(1.0)
    assert not made.needs_comparison(look)
    look.after.clear()
    made.untimed = PATIENCE  # no times come any more
    assert not made.needs_comparison(look)
    assert not made.may_repeat(look)


def test_void_looks_are_repeated_twice():
    made = load(ONE)
    assert [made.may_repeat(Look(THREE, number)) for number in (1, 2, 3)] == [True, True, False]


def test_ratios_are_to_the_new_shape_after_a_change():
    made = load(ONE)
    made.ratios = {PLAIN: 0.8, THREE: 2.0}
    made.change(THREE, 2.0, [5.0, 5.0, 5.0])
    assert (made.best, made.seconds()) == (THREE, 5.0)
    assert made.ratios == {PLAIN: 0.4, ONE: 0.5}
    assert made.ratio(THREE) == 1.0


def test_a_change_without_times_forgets_all_ratios():
    made = load(ONE)
    made.ratios = {PLAIN: 0.8}
    made.change(TREE, None, [])
    assert (made.best, made.ratios, made.is_known()) == (TREE, {}, False)


def test_a_look_begins_with_the_newest_times():
    made = load(ONE, 9.0, 1.0, 2.0, 3.0)
    made.launched = 77
    look = looked(made, THREE)
    assert (look.before, made.looked[THREE], made.steps) == ([1.0, 2.0, 3.0], 77, 0)
