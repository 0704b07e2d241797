"""How many tokens to draft: K from measured step times and acceptance, for each size of batch.

A step that drafts K tokens gives each request 1 + a_1 + a_1 a_2 + ... + a_1..a_K tokens, where a_i
is the share of i-th drafts accepted among those whose predecessors were, and takes the time t(K)
that such steps took at this size of batch. `AdaptiveSteps` answers with the K of most tokens per
second; K = 0 is plain decoding, so that a batch for which drafting does not pay is not slowed down
by it. Steps that cannot be timed (a prefill beside each of them, sizes that alternate) still tell
about acceptance: without times a draft is taken to be cheap, which leaves K = 0 to a head that is
hardly ever right.

The switch itself (attention plans, CUDA graphs, buffers of each K) is SGLang's AdaptiveController,
whose own policy looks at acceptance alone and needs a table of batch sizes.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

# Steps timed before a K is judged, and the newest ones that its median is taken of.
_ENOUGH_TIMES = 3
_KEPT_TIMES = 9
# Drafts over which acceptance is averaged, exponentially: an answer or two of one request.
_MEMORY_DRAFTS = 128.0
# A look at a longer K sees this many drafts, and what was known before counts for so many of them:
# at K = 0 nothing is seen, and meanwhile other requests have come.
_LOOK_DRAFTS = 16
_LOOK_MEMORY = 8.0
# Steps from one look to the next: at least these, and so many that looks cost this share of tokens.
_LEAST_BETWEEN_LOOKS = 64
_LOOK_COST = 0.01
# A look ends early if it promises less than this factor.
_HOPELESS = 0.9
# Steps for which a K is left alone at most.
_FORGOTTEN_AFTER = 1000
# What was measured may be off by this factor (a neighbour of the machine came or went).
_HOPE = 1.2
# Steps after which what is known is compared again.
_COMPARE_EVERY = 8
# Overlap scheduling launches one step before it has the result of the one before.
_IN_FLIGHT = 2
# Steps in a row that could not be timed, after which no times are waited for.
_PATIENCE = 16
# What a draft adds to a step then, in plain steps: the head's layer and one more row to verify are
# hardly cheaper anywhere.
_CHEAP_DRAFT = 0.1
# A change must promise this factor: medians of step times wobble by a per cent or two.
_WORTHWHILE = 1.03


@dataclass
class Acceptance:
    """Acceptance per draft step, of all requests alike.

    Attributes:
        drafted: how many i-th drafts had all their predecessors accepted, by i from 0, decayed.
        accepted: how many of these were accepted, decayed alike.
    """

    drafted: list[float]
    accepted: list[float]

    @classmethod
    def of(cls, num_steps: int) -> Acceptance:
        """Nothing seen yet, for drafts of at most `num_steps` tokens."""
        return cls([0.0] * num_steps, [0.0] * num_steps)

    def observe(self, num_steps: int, correct: Sequence[int]) -> None:
        """Count a step that drafted `num_steps` tokens per request, `correct` of them accepted."""
        for step in range(num_steps):
            reached = sum(count >= step for count in correct)
            kept = max(0.0, 1.0 - reached / _MEMORY_DRAFTS)
            self.drafted[step] = self.drafted[step] * kept + reached
            self.accepted[step] = self.accepted[step] * kept + sum(c > step for c in correct)

    def fade(self, first_step: int) -> None:
        """Let what is known about drafts from `first_step` (0-based) on weigh `_LOOK_MEMORY`."""
        for step in range(first_step, len(self.drafted)):
            kept = min(1.0, _LOOK_MEMORY / max(self.drafted[step], 1.0))
            self.drafted[step] *= kept
            self.accepted[step] *= kept

    def tokens(self, num_steps: int) -> float:
        """Expected tokens per request and step with K = `num_steps`; 1 for acceptance not seen."""
        expected = chain = 1.0
        for drafted, accepted in zip(
            self.drafted[:num_steps], self.accepted[:num_steps], strict=True
        ):
            chain *= accepted / drafted if drafted else 1.0
            expected += chain
        return expected


@dataclass
class _Load:
    """What is known about one size of batch.

    Attributes:
        best: the K in use between looks.
        times: seconds of the newest steps of it.
        ratios: how many times as long a step took with another K when that was last looked at. Not
            in seconds: a machine whose clock or neighbours change makes all K slower or faster.
        trial: the K that is being looked at, None between looks.
        trial_times: seconds of its steps.
        trial_drafts: drafts of it that have been verified.
        launched: steps so far.
        untimed: steps since the last one that could be timed.
        looked: `launched` at the last look at each K.
        doubted: the K that was left for the best one, until it has been compared once more.
        look_after: steps from the end of one look to the next.
        steps: steps since a look began or ended.
    """

    best: int
    times: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_TIMES))
    ratios: dict[int, float] = field(default_factory=dict)
    trial: int | None = None
    trial_times: list[float] = field(default_factory=list)
    trial_drafts: int = 0
    launched: int = 0
    untimed: int = 0
    looked: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    doubted: int | None = None
    look_after: float = _LEAST_BETWEEN_LOOKS
    steps: int = 0

    def observe(self, num_steps: int, seconds: float) -> None:
        """Keep the time of a step."""
        self.untimed = 0
        if num_steps == self.trial:
            self.trial_times.append(seconds)
        elif num_steps == self.best:
            self.times.append(seconds)

    def known(self) -> bool:
        """Whether the best K has been timed."""
        return len(self.times) >= _ENOUGH_TIMES

    def seconds(self) -> float:
        """The time of a step with the best K."""
        return statistics.median(self.times)

    def waits_for_times(self) -> bool:
        """Whether times are worth waiting for."""
        return self.untimed < _PATIENCE

    def is_trial_timed(self) -> bool:
        """Whether the look can be compared with the best K by times."""
        return self.known() and len(self.trial_times) >= _ENOUGH_TIMES

    def ratio(self, num_steps: int) -> float:
        """How many times as long as with the best K a step takes: measured, else assumed."""
        cheap = (1 + _CHEAP_DRAFT * num_steps) / (1 + _CHEAP_DRAFT * self.best)
        return self.ratios.get(num_steps, cheap)

    def trial_ratio(self) -> float:
        """The same of the K that is being looked at, by this look if it could be timed."""
        assert self.trial is not None
        if not self.is_trial_timed():
            return self.ratio(self.trial)
        return statistics.median(self.trial_times) / self.seconds()

    def change(self, num_steps: int) -> None:
        """Use the K that has just been looked at from now on."""
        ratio = self.ratios.pop(num_steps, None)
        if ratio is None:
            self.ratios.clear()
        else:
            self.ratios[self.best] = 1.0
            self.ratios = {k: other / ratio for k, other in self.ratios.items()}
        self.times.clear()
        self.times.extend(self.trial_times)
        self.best = num_steps


@dataclass(frozen=True)
class _Step:
    """A decoding step that has been launched: K, size class, and whether only it took the time."""

    num_steps: int
    load: int
    alone: bool


class AdaptiveSteps:
    """Policy of SGLang's AdaptiveController: K for the next step, at most `max_steps`.

    Steps are launched one by one and their results come in the same order, with overlap scheduling
    after the next launch. So the time from one result to the next is the time of a step, if both
    steps were alike and nothing else ran in between.
    """

    def __init__(self, max_steps: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start with nothing known.

        Args:
            max_steps: the largest K, at least 1.
            clock: seconds.
        """
        self.candidate_steps = list(range(max_steps + 1))
        self.acceptance = Acceptance.of(max_steps)
        self._loads: dict[int, _Load] = {}
        self._clock = clock
        self._launched: deque[_Step] = deque()
        self._last: tuple[_Step, float] | None = None
        self._disturbed = True
        self._cuda_graph_bs: list[int] | None = None

    def set_cuda_graph_bs(self, cuda_graph_bs: list[int] | None) -> None:
        """Every K is captured for the batch sizes that SGLang captures."""
        self._cuda_graph_bs = cuda_graph_bs

    def cuda_graph_bs_for_step(self, step: int) -> list[int] | None:
        """The batch sizes to capture CUDA graphs of K = `step` for."""
        return self._cuda_graph_bs

    def disturb(self) -> None:
        """Something else than a decoding step was launched (a prefill)."""
        self._disturbed = True

    def get_steps_for_batch(self, batch_size: int) -> int:
        """Choose K for the step that is launched now."""
        size = batch_size.bit_length()
        load = self._loads.setdefault(size, _Load(best=self.candidate_steps[-1]))
        chosen = self._choose(load, batch_size)
        if len(self._launched) == _IN_FLIGHT:
            # A step whose result never came; the order of the others must not suffer from it.
            self._launched.popleft()
        self._launched.append(_Step(chosen, size, not self._disturbed))
        self._disturbed = False
        return chosen

    def on_verify_complete(self, num_correct_drafts_per_req: list[int], batch_size: int) -> None:
        """Learn from the result of the oldest step without one; K is changed at launches only.

        Args:
            num_correct_drafts_per_req: accepted drafts of each request.
            batch_size: number of requests.
        """
        now = self._clock()
        if not self._launched:
            return
        step = self._launched.popleft()
        load = self._loads[step.load]
        if self._last is not None:
            previous, then = self._last
            if step.alone and (step.num_steps, step.load) == (previous.num_steps, previous.load):
                load.observe(step.num_steps, now - then)
        self._last = step, now
        if load.trial == step.num_steps:
            load.trial_drafts += batch_size
        self.acceptance.observe(step.num_steps, num_correct_drafts_per_req)

    def _choose(self, load: _Load, batch_size: int) -> int:
        load.steps += 1
        load.launched += 1
        load.untimed += 1
        if load.trial is not None:
            if not self._seen_enough(load):
                return load.trial
            self._end_look(load, batch_size)
        if load.waits_for_times():
            if not load.known():
                return load.best
            unknown = self._unknown(load)
            if unknown:
                return self._look(load, unknown[0])
            if load.doubted is not None:
                return self._look(load, load.doubted)
        if load.steps % _COMPARE_EVERY == 0:
            winner = self._winner(load)
            if winner != load.best:
                # Acceptance has changed, but its ratio is old: look before it is believed.
                return self._look(load, winner)
        if load.steps >= load.look_after:
            candidates = [k for k in self.candidate_steps if self._may_win(load, k)]
            if candidates:
                return self._look(load, min(candidates, key=lambda k: load.looked[k]))
            load.steps = 0
        return load.best

    def _unknown(self, load: _Load) -> list[int]:
        """The K that were never looked at, the most promising first.

        Without a longer one that acceptance speaks against: the regular looks will come to it.
        """
        speeds = self._speeds(load)
        unknown = [k for k in speeds if k != load.best and k not in load.ratios | load.looked]
        promising = [k for k in unknown if k < load.best or speeds[k] > speeds[load.best]]
        return sorted(promising, key=speeds.__getitem__, reverse=True)

    def _look(self, load: _Load, num_steps: int) -> int:
        load.trial, load.trial_times, load.trial_drafts, load.steps = num_steps, [], 0, 0
        load.looked[num_steps] = load.launched
        if num_steps > load.best:
            self.acceptance.fade(load.best)
        return num_steps

    def _seen_enough(self, load: _Load) -> bool:
        """Whether the look has timed its K and, if K is not below the best one, seen its drafts.

        Half of them will do if they were bad, and no times where there will be none.
        """
        trial = load.trial
        assert trial is not None
        hopeless = self._gain(load, trial) < _HOPELESS * load.trial_ratio()
        patience = _PATIENCE / 2 if hopeless else _PATIENCE
        waits = load.steps < patience and load.waits_for_times()
        if len(load.trial_times) < _ENOUGH_TIMES and waits:
            return False
        if trial < load.best or load.trial_drafts >= _LOOK_DRAFTS:
            return True
        return hopeless and load.trial_drafts >= _LOOK_DRAFTS / 2

    def _gain(self, load: _Load, num_steps: int) -> float:
        """How many times as many tokens as with the best K a step gives."""
        return self.acceptance.tokens(num_steps) / self.acceptance.tokens(load.best)

    def _end_look(self, load: _Load, batch_size: int) -> None:
        """Take the K of most tokens per second; the next look comes when this one is paid off.

        A change by times is doubted once, since this comparison is of newer ones with older ones.
        """
        trial = load.trial
        assert trial is not None
        is_timed = load.is_trial_timed()
        if is_timed:
            ratio = load.trial_ratio()
            # A longer step is never the faster one.
            load.ratios[trial] = min(ratio, 1.0) if trial < load.best else max(ratio, 1.0)
        load.trial = None
        steps, load.steps = load.steps, 0
        present, doubted, load.doubted = load.best, load.doubted, None
        load.look_after = _LEAST_BETWEEN_LOOKS
        if self._winner(load) != trial:
            # At worst, tokens that are computed together take as long as one after the other.
            ratio = load.ratios.get(trial, trial + 1)
            lost_steps = steps * (ratio - self._gain(load, trial))
            load.look_after = max(_LEAST_BETWEEN_LOOKS, lost_steps / _LOOK_COST)
            return
        load.change(trial)
        if not is_timed:
            logger.info("K=%d at a batch of %d, by acceptance alone.", trial, batch_size)
            return
        if doubted is None:
            load.doubted = present
        speeds = {k: speed / load.seconds() for k, speed in sorted(self._speeds(load).items())}
        logger.info(
            "K=%d at a batch of %d: %s tokens/s and request at K=%s.",
            trial,
            batch_size,
            ", ".join(f"{speed:.1f}" for speed in speeds.values()),
            ", ".join(map(str, speeds)),
        )

    def _speeds(self, load: _Load) -> dict[int, float]:
        """Tokens per request, in the time of a step of the best K, of every K."""
        return {k: self.acceptance.tokens(k) / load.ratio(k) for k in self.candidate_steps}

    def _winner(self, load: _Load) -> int:
        """The K of most tokens per second, if it is worth a change; the present one otherwise."""
        speeds = self._speeds(load)
        fastest = max(speeds, key=speeds.__getitem__)
        return fastest if speeds[fastest] >= _WORTHWHILE * speeds[load.best] else load.best

    def _may_win(self, load: _Load, num_steps: int) -> bool:
        """Whether K could be the best one by now.

        That is if its ratio was a little too high, and acceptance has risen to 1 in the meantime.
        After a long while the ratio may be anything.
        """
        if num_steps == load.best:
            return False
        if load.launched - load.looked[num_steps] > _FORGOTTEN_AFTER:
            return True
        tokens = num_steps + 1 if num_steps > load.best else self.acceptance.tokens(num_steps)
        return _HOPE * tokens / load.ratio(num_steps) > self.acceptance.tokens(load.best)
