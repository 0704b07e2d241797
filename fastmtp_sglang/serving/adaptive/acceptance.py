"""How many drafts each shape would have had accepted, as seen with whatever shape was in use.

A shape gives each request 1 + a_1 + a_1 a_2 + ... + a_1..a_K tokens a step, where a_i is the share
of i-th drafts accepted among those whose predecessors were. For a tree the i-th draft is whichever
of those verified at depth i is right. All chains share their a_i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fastmtp_sglang.contract.tree_shape import TreeShape

# Drafts over which acceptance is averaged, exponentially: an answer or two of one request.
_MEMORY_DRAFTS = 128.0


class Seen(NamedTuple):
    """What a step tells about a shape, an entry a request.

    Attributes:
        accepted: drafts that it would have had accepted.
        known: the number of its drafts, one after the other, of which that is known: K, or fewer.
    """

    accepted: Sequence[int]
    known: Sequence[int]

    @classmethod
    def all_of(cls, accepted: Sequence[int], num_steps: int) -> Seen:
        """Everything is known."""
        return cls(accepted, [num_steps] * len(accepted))


class Rates:
    """The a_i of one shape, of all requests alike, decayed."""

    def __init__(self, num_steps: int) -> None:
        """Nothing seen yet, for drafts of `num_steps` tokens."""
        self._drafted = [0.0] * num_steps
        self._accepted = [0.0] * num_steps

    def observe(self, seen: Seen) -> None:
        """Count a step."""
        accepted, known = seen
        for step in range(min(len(self._drafted), max(known, default=0))):
            reached = hits = 0
            for count, limit in zip(accepted, known, strict=True):
                if step < limit and step <= count:
                    reached += 1
                    hits += step < count
            kept = max(0.0, 1.0 - reached / _MEMORY_DRAFTS)
            self._drafted[step] = self._drafted[step] * kept + reached
            self._accepted[step] = self._accepted[step] * kept + hits

    def fade(self, first_step: int, weight: float) -> None:
        """Let what is known of the drafts from `first_step` (0-based) on weigh `weight` at most."""
        for step in range(first_step, len(self._drafted)):
            kept = min(1.0, weight / max(self._drafted[step], 1.0))
            self._drafted[step] *= kept
            self._accepted[step] *= kept

    def tokens(self, num_steps: int) -> float:
        """Expected tokens per request and step of `num_steps` drafts; 1 for a_i not seen."""
        expected = path = 1.0
        for drafted, accepted in zip(
            self._drafted[:num_steps], self._accepted[:num_steps], strict=True
        ):
            path *= accepted / drafted if drafted else 1.0
            expected += path
        return expected


class Acceptance:
    """Rates of all shapes that are chosen among."""

    def __init__(self, shapes: Sequence[TreeShape]) -> None:
        """Nothing seen yet."""
        chains = Rates(max(shape.num_steps for shape in shapes))
        self._rates = {s: chains if s.top_k == 1 else Rates(s.num_steps) for s in shapes}

    @staticmethod
    def covers(used: TreeShape, shape: TreeShape) -> bool:
        """Whether steps of one shape show what another would have had accepted."""
        return shape.num_steps <= used.num_steps and shape.top_k in (1, used.top_k)

    def observe(self, seen: Mapping[TreeShape, Seen]) -> None:
        """Count a step; of the chains only the longest."""
        for shape, counts in seen.items():
            self._rates[shape].observe(counts)

    def fade(self, used: TreeShape, weight: float) -> None:
        """Let what steps of the shape in use do not show weigh `weight` drafts at most."""
        for shape, rates in self._rates.items():
            if not self.covers(used, shape):
                rates.fade(used.num_steps if shape.top_k == 1 else 0, weight)

    def tokens(self, shape: TreeShape) -> float:
        """Expected tokens per request and step; K + 1 for a shape that nothing was seen of."""
        return self._rates[shape].tokens(shape.num_steps)
