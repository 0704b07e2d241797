"""What is known about one size of batch: how long steps of each shape take, and what is looked at.

Times of other shapes than the one in use are kept as ratios, not in seconds: a machine whose clock
or neighbours change makes all shapes slower or faster. So a look at another shape is timed between
steps of the one in use, and is void if these took longer, or less long, after it than before.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median

from fastmtp_sglang.contract.tree_shape import PLAIN, TreeShape

# Steps timed before a shape is judged, and the newest ones that its median is taken of.
_ENOUGH_TIMES = 3
_KEPT_TIMES = 9
# A step that took this factor longer than it may is no accident.
_TOO_SLOW = 1.5
# Steps before and after a look that differ by this factor say nothing about the one in between.
_WANDERED = 1.25
# Looks at a shape, one after the other, until one of them is not void.
_MOST_LOOKS = 3
# Steps in a row that could not be timed, after which no times are waited for.
PATIENCE = 16
# What drafting adds to a step, in plain steps, as long as no time says otherwise: one more pass of
# the head's layer, and one more row to verify, are hardly cheaper anywhere.
_CHEAP_DRAFT = 0.08
_CHEAP_ROW = 0.02


@dataclass
class Look:
    """A shape that is tried for some steps, and what is seen of it.

    Attributes:
        shape: that is tried.
        number: how many looks at it there were in a row, this one included.
        times: seconds of its steps.
        drafts: drafts of it that have been verified.
        steps: steps launched with it.
        before: seconds of the steps of the shape in use before.
        after: the same after it; None until the shape in use is back.
    """

    shape: TreeShape
    number: int = 1
    times: list[float] = field(default_factory=list)
    drafts: int = 0
    steps: int = 0
    before: list[float] = field(default_factory=list)
    after: list[float] | None = None

    def is_void(self) -> bool:
        """Whether the machine's speed changed meanwhile."""
        if not self.after:
            return False
        return not 1 / _WANDERED < median(self.after) / median(self.before) < _WANDERED


@dataclass
class Load:
    """One size of batch.

    Attributes:
        best: the shape in use between looks.
        look_after: steps from the end of one look to the next.
        shapes: that may be drafted, the one to begin with first.
        times: seconds of the newest steps of it.
        ratios: how many times as long a step took with another shape when that was last looked at.
        look: the present one, None between looks.
        looked: `launched` at the last look at each shape.
        launched: steps so far.
        untimed: steps since the last one that could be timed.
        steps: steps since the last look.
    """

    best: TreeShape
    look_after: float
    shapes: tuple[TreeShape, ...] = (PLAIN,)
    times: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_TIMES))
    ratios: dict[TreeShape, float] = field(default_factory=dict)
    look: Look | None = None
    looked: dict[TreeShape, int] = field(default_factory=lambda: defaultdict(int))
    launched: int = 0
    untimed: int = 0
    steps: int = 0

    @property
    def trial(self) -> TreeShape | None:
        """The shape that is looked at and in use."""
        return self.look.shape if self.look is not None and self.look.after is None else None

    def observe(self, shape: TreeShape, seconds: float) -> None:
        """Keep the time of a step."""
        self.untimed = 0
        if self.look is not None and shape == self.trial:
            self.look.times.append(seconds)
        elif shape == self.best:
            self.times.append(seconds)
            if self.look is not None and self.look.after is not None:
                self.look.after.append(seconds)

    def is_known(self) -> bool:
        """Whether the best shape has been timed."""
        return len(self.times) >= _ENOUGH_TIMES

    def seconds(self) -> float:
        """The time of a step with the best shape."""
        return median(self.times)

    def waits_for_times(self) -> bool:
        """Whether times are worth waiting for."""
        return self.untimed < PATIENCE

    def ratio(self, shape: TreeShape) -> float:
        """How many times as long as with the best shape a step takes: measured, else assumed."""
        known = self._known_ratios()
        return known.get(shape) or max(self._assumed_ratio(shape), self.least_ratio(shape))

    def least_ratio(self, shape: TreeShape) -> float:
        """What the ratio is at least: a step that does more never takes less time."""
        known = self._known_ratios()
        return max((r for other, r in known.items() if other.is_within(shape)), default=0.0)

    def _known_ratios(self) -> dict[TreeShape, float]:
        return {**self.ratios, self.best: 1.0}

    def _assumed_ratio(self, shape: TreeShape) -> float:
        """Drafts and rows that cost more than assumed with all that was timed do so here."""
        known = self._known_ratios()
        plain = known.pop(PLAIN, None)
        if plain is None:
            return _assumed_time(shape) / _assumed_time(self.best)
        dearer = [(r / plain - 1) / (_assumed_time(other) - 1) for other, r in known.items()]
        return plain * (1 + min(dearer, default=1.0) * (_assumed_time(shape) - 1))

    def begin_look(self, shape: TreeShape, number: int = 1) -> None:
        """Use another shape for some steps."""
        before = list(self.times)[-_ENOUGH_TIMES:] if self.is_known() else []
        self.look = Look(shape, number, before=before)
        self.looked[shape] = self.launched
        self.steps = 0

    def is_timed(self, look: Look) -> bool:
        """Whether the look has timed its shape."""
        return len(look.times) >= _ENOUGH_TIMES

    def is_too_slow(self, look: Look, most_gain: float) -> bool:
        """Whether each of its steps took too long for a gain in tokens of at most `most_gain`.

        One is enough to leave it then: steps may take many times as long.
        """
        if not (self.is_known() and look.times):
            return False
        return min(look.times) > _TOO_SLOW * most_gain * self.seconds()

    def look_ratio(self, look: Look) -> float:
        """The ratio of the shape that is looked at, by this look if it could be timed."""
        if not (look.before and look.times):
            return self.ratio(look.shape)
        around = math.sqrt(median(look.before) * median(look.after or look.before))
        # A step that does more is never the faster one.
        ratio = median(look.times) / around
        if look.shape.is_within(self.best):
            return min(ratio, 1.0)
        return max(ratio, 1.0) if self.best.is_within(look.shape) else ratio

    def needs_comparison(self, look: Look) -> bool:
        """Whether the shape in use is still to be timed after the look."""
        if not (look.before and look.times) or not self.waits_for_times():
            return False
        return len(look.after or ()) < _ENOUGH_TIMES

    def may_repeat(self, look: Look) -> bool:
        """Whether a void look is worth another one."""
        return look.number < _MOST_LOOKS and self.waits_for_times()

    def change(self, shape: TreeShape, ratio: float | None, times: Iterable[float]) -> None:
        """Use another shape from now on.

        Args:
            shape: looked at.
            ratio: its, None if it could not be timed.
            times: seconds of its steps.
        """
        self.ratios.pop(shape, None)
        if ratio is None:
            self.ratios.clear()
        else:
            self.ratios[self.best] = 1.0
            self.ratios = {other: r / ratio for other, r in self.ratios.items()}
        self.times.clear()
        self.times.extend(times)
        self.best = shape


def _assumed_time(shape: TreeShape) -> float:
    return 1 + _CHEAP_DRAFT * shape.num_steps + _CHEAP_ROW * (shape.num_rows - 1)
