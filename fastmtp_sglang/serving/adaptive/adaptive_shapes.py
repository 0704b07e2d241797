"""What to draft: a shape by measured step times and acceptance, for each size of batch.

A step gives each request the tokens that `Acceptance` expects of its shape, and takes the time that
such steps took at this size of batch. `AdaptiveShapes` answers with the shape of most tokens per
second; plain decoding is one of them, so that a batch for which drafting does not pay is not slowed
down by it. Steps of a tree show what smaller shapes would have had accepted, so that looks at those
are for their times. Steps that cannot be timed (a prefill beside each of them, sizes that
alternate) still tell about acceptance: without times a draft is taken to be cheap, which leaves
plain decoding to a head that is hardly ever right.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastmtp_sglang.contract.tree_shape import PLAIN, TreeShape
from fastmtp_sglang.serving.adaptive.acceptance import Acceptance, Seen
from fastmtp_sglang.serving.adaptive.candidate_steps import CandidateSteps
from fastmtp_sglang.serving.adaptive.draft_record import Drafted
from fastmtp_sglang.serving.adaptive.load import PATIENCE, Load, Look

logger = logging.getLogger(__name__)

# A look at a shape whose acceptance is not known sees this many drafts, and what was known before
# counts for so many of them: in plain decoding nothing is seen, and meanwhile other requests came.
_LOOK_DRAFTS = 16
_LOOK_MEMORY = 8.0
# Steps from one look to the next: at least these, and so many that looks cost this share of tokens.
_LEAST_BETWEEN_LOOKS = 64
_LOOK_COST = 0.01
# A look ends early if it promises less than this factor.
_HOPELESS = 0.9
# Steps for which a shape is left alone at most.
_FORGOTTEN_AFTER = 1000
# What was measured may be off by this factor (a neighbour of the machine came or went).
_HOPE = 1.2
# Steps after which what is known is compared again.
_COMPARE_EVERY = 8
# Overlap scheduling launches one step before it has the result of the one before.
_IN_FLIGHT = 2
# A change must promise this factor: medians of step times wobble by a per cent or two.
_WORTHWHILE = 1.03


@dataclass
class _Step:
    """A decoding step that has been launched.

    Attributes:
        shape: what it drafts and verifies.
        load: its size class, see `AdaptiveShapes._load_of`.
        alone: whether only it took the time.
        is_blind: whether it begins a look after plain decoding, so that its drafts begin with
            nothing, and tell nothing.
        drafted: of a tree.
    """

    shape: TreeShape
    load: tuple[int, int]
    alone: bool
    is_blind: bool
    drafted: Drafted | None = None


class AdaptiveShapes:
    """The policy: a shape for the next step.

    Steps are launched one by one and their results come in the same order, with overlap scheduling
    after the next launch. So the time from one result to the next is the time of a step, if both
    steps were alike and nothing else ran in between.

    Attributes:
        shapes: that are chosen among.
        latest: the shape of the step that was launched last.
    """

    def __init__(
        self,
        shapes: Sequence[TreeShape],
        clock: Callable[[], float] = time.perf_counter,
        steps: CandidateSteps | None = None,
    ) -> None:
        """Start with nothing known.

        Args:
            shapes: to choose among, `PLAIN` first and the largest, which the rest is within, last;
                each shows what those before it would have had accepted, if any does.
            clock: seconds.
            steps: that each size of batch may draft; None for all.
        """
        self.shapes = tuple(shapes)
        self.acceptance = Acceptance(shapes)
        self._loads: dict[tuple[int, int], Load] = {}
        self._clock = clock
        self._steps = steps
        self._launched: deque[_Step] = deque()
        self.latest = shapes[-1]
        self._last: tuple[_Step, float] | None = None
        self._disturbed = True

    def disturb(self) -> None:
        """Something else than a decoding step was launched (a prefill)."""
        self._disturbed = True

    def shape_for_batch(self, batch_size: int) -> TreeShape:
        """Choose the shape of the step that is launched now."""
        size = self._load_of(batch_size)
        load = self._loads[size]
        chosen = self._choose(load, batch_size)
        if len(self._launched) == _IN_FLIGHT:
            # A step whose result never came; the order of the others must not suffer from it.
            self._launched.popleft()
        is_first = load.trial == chosen and load.steps == 0
        is_blind = self.latest == PLAIN and is_first
        self._launched.append(_Step(chosen, size, not self._disturbed, is_blind))
        self.latest, self._disturbed = chosen, False
        return chosen

    def _load_of(self, batch_size: int) -> tuple[int, int]:
        """The size class of a batch: up to a factor of 2, and with the same steps allowed."""
        key = batch_size.bit_length(), self._steps.closest(batch_size) if self._steps else 0
        if key not in self._loads:
            shapes = self._steps.among(self.shapes, batch_size) if self._steps else self.shapes
            self._loads[key] = Load(shapes[0], _LEAST_BETWEEN_LOOKS, shapes)
        return key

    def drafted(self, drafted: Drafted) -> None:
        """Note all drafts of the step that was launched last, of a tree."""
        self._launched[-1].drafted = drafted

    def learn(self, emitted: Sequence[tuple[str, int]]) -> None:
        """Learn from the result of the oldest step without one.

        Args:
            emitted: each request of the step, and its accepted drafts that a client got.
        """
        now = self._clock()
        if not self._launched:
            return
        step = self._launched.popleft()
        load = self._loads[step.load]
        if self._last is not None:
            previous, then = self._last
            if step.alone and (step.shape, step.load) == (previous.shape, previous.load):
                load.observe(step.shape, now - then)
        self._last = step, now
        if step.is_blind or step.shape == PLAIN:
            return
        if load.look is not None and load.trial == step.shape:
            load.look.drafts += len(emitted)
        self.acceptance.observe(self._seen(step, emitted))

    def _seen(self, step: _Step, emitted: Sequence[tuple[str, int]]) -> dict[TreeShape, Seen]:
        shape = step.shape
        if step.drafted is None:
            return {shape: Seen.all_of([count for _, count in emitted], shape.num_steps)}
        shown = [s for s in self.shapes if s.top_k > 1 and Acceptance.covers(shape, s)]
        return step.drafted.seen(dict(emitted), [TreeShape.of(shape.num_steps), *shown])

    def _choose(self, load: Load, batch_size: int) -> TreeShape:
        load.steps += 1
        load.launched += 1
        load.untimed += 1
        if load.look is not None:
            shape = self._go_on_looking(load, load.look, batch_size)
            if shape is not None:
                return shape
        if load.waits_for_times():
            if not load.is_known():
                return load.best
            unknown = self._unknown(load)
            if unknown:
                return self._look(load, unknown[0])
        if load.steps % _COMPARE_EVERY == 0:
            winner = self._winner(load)
            if winner != load.best:
                # Acceptance has changed, but its ratio is old: look before it is believed.
                return self._look(load, winner)
        if load.steps >= load.look_after:
            due = self._due(load)
            if due:
                return self._look(load, min(due, key=lambda shape: load.looked[shape]))
            load.steps = 0
        return load.best

    def _go_on_looking(self, load: Load, look: Look, batch_size: int) -> TreeShape | None:
        """The shape of the next step of a look, None if it is over."""
        if look.after is None:
            if not self._seen_enough(load, look):
                look.steps += 1
                return look.shape
            look.after = []
        if load.needs_comparison(look):
            return load.best
        if look.is_void() and load.may_repeat(look):
            return self._look(load, look.shape, look.number + 1)
        self._end_look(load, look, batch_size)
        return None

    def _unknown(self, load: Load) -> list[TreeShape]:
        """The shapes that were never looked at, the most promising first.

        Without those that acceptance speaks against: the regular looks will come to them.
        """
        speeds = self._speeds(load)

        def may_be_faster(shape: TreeShape) -> bool:
            if not self._covers(load, shape):
                return speeds[shape] > speeds[load.best]
            least = load.least_ratio(shape)
            return self.acceptance.tokens(shape) > least * speeds[load.best]

        unknown = [s for s in load.shapes if s != load.best and s not in load.looked]
        promising = [s for s in unknown if s not in load.ratios and may_be_faster(s)]
        return sorted(promising, key=speeds.__getitem__, reverse=True)

    def _due(self, load: Load) -> list[TreeShape]:
        """The shapes that could be the best one by now, and are worth a regular look.

        That is if their ratio was a little too high, and acceptance has risen to 1 in the meantime.
        After a long while the ratio may be anything. Of those whose acceptance is not known the
        largest will do: it shows that of the others.
        """
        due, largest = [], None
        for shape in load.shapes:
            is_forgotten = load.launched - load.looked[shape] > _FORGOTTEN_AFTER
            may_win = _HOPE * self._most_gain(load, shape) > load.ratio(shape)
            if shape == load.best or not (is_forgotten or may_win):
                continue
            if is_forgotten or self._covers(load, shape):
                due.append(shape)
            else:
                largest = shape
        return due if largest is None else [*due, largest]

    def _look(self, load: Load, shape: TreeShape, number: int = 1) -> TreeShape:
        load.begin_look(shape, number)
        if not self._covers(load, shape):
            self.acceptance.fade(load.best, _LOOK_MEMORY)
        return shape

    def _covers(self, load: Load, shape: TreeShape) -> bool:
        """Whether the acceptance of a shape is known without looks."""
        return self.acceptance.covers(load.best, shape)

    def _seen_enough(self, load: Load, look: Look) -> bool:
        """Whether the look has timed its shape and, unless they are known, seen its drafts.

        Half of them will do if they were bad, and no times where there will be none.
        """
        shape = look.shape
        if load.is_too_slow(look, self._most_gain(load, shape)):
            return True
        hopeless = self._gain(load, shape) < _HOPELESS * load.look_ratio(look)
        patience = PATIENCE / 2 if hopeless else PATIENCE
        if not load.is_timed(look) and look.steps < patience and load.waits_for_times():
            return False
        if self._covers(load, shape) or look.drafts >= _LOOK_DRAFTS:
            return True
        return hopeless and look.drafts >= _LOOK_DRAFTS / 2

    def _gain(self, load: Load, shape: TreeShape) -> float:
        """How many times as many tokens as with the best shape a step gives."""
        return self.acceptance.tokens(shape) / self.acceptance.tokens(load.best)

    def _most_gain(self, load: Load, shape: TreeShape) -> float:
        """The same at best: with every draft accepted of a shape whose acceptance is not known."""
        known = self._covers(load, shape)
        tokens = self.acceptance.tokens(shape) if known else shape.num_steps + 1
        return tokens / self.acceptance.tokens(load.best)

    def _end_look(self, load: Load, look: Look, batch_size: int) -> None:
        """Keep the shape if it is faster; else the next look comes when this one is paid off."""
        shape = look.shape
        load.look, load.steps, load.look_after = None, 0, _LEAST_BETWEEN_LOOKS
        if look.is_void():
            return
        ratio = load.look_ratio(look) if look.before and look.times else None
        if ratio is not None:
            load.ratios[shape] = ratio
        speeds = self._speeds(load)
        if speeds[shape] >= _WORTHWHILE * speeds[load.best]:
            load.change(shape, ratio, look.times)
            self._report(load, batch_size, by_times=ratio is not None)
            return
        # At worst, tokens that are computed together take as long as one after the other.
        slower = load.ratios.get(shape, shape.num_rows)
        lost_steps = (look.steps + 1) * (slower - self._gain(load, shape))
        load.look_after = max(_LEAST_BETWEEN_LOOKS, lost_steps / _LOOK_COST)

    def _report(self, load: Load, batch_size: int, *, by_times: bool) -> None:
        if not by_times:
            logger.info("%s at a batch of %d, by acceptance alone.", _name(load.best), batch_size)
            return
        speeds = {_name(s): v / load.seconds() for s, v in self._speeds(load).items()}
        logger.info(
            "%s at a batch of %d; tokens/s and request: %s.",
            _name(load.best),
            batch_size,
            ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items()),
        )

    def _speeds(self, load: Load) -> dict[TreeShape, float]:
        """Tokens per request, in the time of a step of the best shape, of every shape allowed."""
        return {shape: self.acceptance.tokens(shape) / load.ratio(shape) for shape in load.shapes}

    def _winner(self, load: Load) -> TreeShape:
        """The shape of most tokens per second, if it is worth a change; else the present one."""
        speeds = self._speeds(load)
        fastest = max(speeds, key=speeds.__getitem__)
        return fastest if speeds[fastest] >= _WORTHWHILE * speeds[load.best] else load.best


def _name(shape: TreeShape) -> str:
    return f"K={shape.num_steps}" if shape.top_k == 1 else str(shape)
