"""How many tokens to draft: K from measured step times and acceptance, for each size of batch.

A step that drafts K tokens gives each request 1 + a_1 + a_1 a_2 + ... + a_1..a_K tokens, where a_i
is the share of i-th drafts accepted among those whose predecessors were, and takes the time t(K)
that such steps took at this size of batch. `AdaptiveSteps` answers with the K of most tokens per
second; K = 0 is plain decoding, so that a batch for which drafting does not pay is not slowed down
by it. The switch itself (attention plans, CUDA graphs, buffers of each K) is SGLang's
AdaptiveController, whose own policy looks at acceptance alone and needs a table of batch sizes.
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
# Drafts over which acceptance is averaged, exponentially: some answers' worth of them.
_MEMORY_DRAFTS = 512.0
# Steps between two looks at another K; doubled whenever the look changes nothing.
_FIRST_LOOK, _LAST_LOOK = 64, 1024
# Overlap scheduling launches one step before it has the result of the one before.
_IN_FLIGHT = 2
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
        times: seconds of the newest steps, by K.
        best: the K in use between looks.
        trial: the K that is being looked at, None between looks.
        look_after: steps from one look to the next.
        steps: steps since the last look.
    """

    best: int
    times: dict[int, deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=_KEPT_TIMES))
    )
    trial: int | None = None
    look_after: int = _FIRST_LOOK
    steps: int = 0
    _looked_at: int = 0

    def seconds(self, num_steps: int) -> float | None:
        times = self.times[num_steps]
        return statistics.median(times) if len(times) >= _ENOUGH_TIMES else None


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
        if self._last is not None:
            previous, then = self._last
            if step.alone and (step.num_steps, step.load) == (previous.num_steps, previous.load):
                self._loads[step.load].times[step.num_steps].append(now - then)
        self._last = step, now
        self.acceptance.observe(step.num_steps, num_correct_drafts_per_req)

    def _choose(self, load: _Load, batch_size: int) -> int:
        load.steps += 1
        if load.trial is not None:
            if load.seconds(load.trial) is None:
                return load.trial
            load.trial = None
            load.steps = 0
            self._settle(load, batch_size)
        unknown = [k for k in self.candidate_steps if load.seconds(k) is None]
        if unknown:
            # From the longest down: it tells about the acceptance of all.
            return self._look(load, unknown[-1])
        if load.steps >= load.look_after:
            candidates = [k for k in self.candidate_steps if self._may_win(load, k)]
            if candidates:
                # One after the other.
                later = [k for k in candidates if k > load._looked_at]
                load._looked_at = later[0] if later else candidates[0]
                return self._look(load, load._looked_at)
            load.steps = 0
        return load.best

    @staticmethod
    def _look(load: _Load, num_steps: int) -> int:
        load.trial = num_steps
        load.times[num_steps].clear()
        return num_steps

    def _may_win(self, load: _Load, num_steps: int) -> bool:
        """Whether K could beat the best one if its acceptance has risen to 1 in the meantime."""
        seconds, best = load.seconds(num_steps), load.seconds(load.best)
        if num_steps == load.best or seconds is None or best is None:
            return False
        tokens = num_steps + 1 if num_steps > load.best else self.acceptance.tokens(num_steps)
        return tokens / seconds > _WORTHWHILE * self.acceptance.tokens(load.best) / best

    def _settle(self, load: _Load, batch_size: int) -> None:
        """Make the K of most tokens per second the best one, if it is worth a change."""
        speeds = {
            k: self.acceptance.tokens(k) / seconds
            for k in self.candidate_steps
            if (seconds := load.seconds(k)) is not None
        }
        winner = max(speeds, key=speeds.__getitem__)
        present = speeds.get(load.best, 0.0)
        if winner == load.best or speeds[winner] < _WORTHWHILE * present:
            load.look_after = min(load.look_after * 2, _LAST_LOOK)
            return
        load.best = winner
        load.look_after = _FIRST_LOOK
        logger.info(
            "K=%d at a batch of %d: %s tokens/s and request at K=%s.",
            winner,
            batch_size,
            ", ".join(f"{speed:.1f}" for speed in speeds.values()),
            ", ".join(map(str, speeds)),
        )
