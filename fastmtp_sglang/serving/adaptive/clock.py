"""One clock for all tensor-parallel ranks: that of the first.

Their policies see the same batches, drafts and results in the same order, and differ only in what
they measure. With the first rank's time everywhere all choose the same shape for every step, which
their collectives need; it costs a broadcast of 8 bytes a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def clock_of(group: Any) -> Callable[[], float]:
    """Return the clock of a policy.

    Args:
        group: SGLang's `GroupCoordinator` of the ranks that must agree.

    Returns:
        seconds, as the first rank's `time.perf_counter` tells them. With several ranks each call
        is a collective on the group's CPU side: all ranks call it equally often, from the thread
        of their scheduler.
    """
    if group.world_size == 1:
        return time.perf_counter

    def agreed() -> float:
        now = torch.tensor([time.perf_counter()], dtype=torch.float64)
        torch.distributed.broadcast(now, src=group.ranks[0], group=group.cpu_group)
        return now.item()

    return agreed
