"""Memory in huge pages for what steps read from one end to the other: weights and caches.

In pages of 4 KB a step of a small model waits for tens of thousands of address translations, and
how long depends on where each process happens to get its pages. Linux gives pages of 2 MB where
they are asked for; elsewhere this is ordinary memory. All products of SmolLM2-135M in bfloat16 take
8.1 ms from them and 9.0 to 10.4 ms, by process, from ordinary ones (two Zen 4 cores). Weights are
smaller than such a page, so they lie side by side in large chunks.
"""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

_HUGE = 2 << 20
_CHUNK = 64 << 20
# Of a cache line, and of the longest vectors.
_ALIGNMENT = 64
# `MADV_HUGEPAGE` and, for what has been written to (Linux 6.1), `MADV_COLLAPSE` of linux/mman.h.
_FROM_NOW_ON, _AT_ONCE = 14, 25


class _Chunks:
    """Gives out memory from the newest chunk; a chunk is freed with its last tensor."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """uint8 [size], aligned."""
        size += -size % _ALIGNMENT
        if size > len(self._rest):
            # One page more, so that it can begin where a huge page does.
            whole = torch.empty(max(size, _CHUNK) + _HUGE, dtype=torch.uint8)
            use_huge_pages(whole)
            self._rest = whole[-whole.data_ptr() % _HUGE :]
        taken, self._rest = self._rest[:size], self._rest[size:]
        return taken


_chunks = _Chunks()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialized tensor that stays for long and is read as a whole."""
    size = math.prod(shape) * dtype.itemsize
    return _chunks.take(size)[:size].view(dtype).view(shape)


def use_huge_pages(tensor: Tensor) -> None:
    """Ask for huge pages where a tensor lies, if the system knows them."""
    start = -(-tensor.data_ptr() // _HUGE) * _HUGE
    size = (tensor.data_ptr() + tensor.nbytes - start) // _HUGE * _HUGE
    advise = _madvise()
    if size > 0 and advise is not None and advise(start, size, _FROM_NOW_ON) == 0:
        # It fails where memory is in pieces: the kernel goes on trying in the background.
        advise(start, size, _AT_ONCE)


@cache
def _madvise() -> Any:
    advise = getattr(ctypes.CDLL(None), "madvise", None)
    if advise is not None:
        advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
