"""Tile sizes of the scoring kernel: a frozen table, so that no run tunes and every run is alike.

Reasoning, with numbers for D 4096 in bfloat16. A program reads BLOCK_V head rows once (64 rows are
512 KB) and scores BLOCK_B rows of the batch with them. The head comes from memory and dominates as
long as the batch's hidden states (8 KB a row, from the L2 cache) stay below it, hence BLOCK_V 64
from 64 rows on. A 32k list is then 512 programs, a 16k list 256. With few listed ids (small lists,
tensor-parallel shares) fewer programs than multiprocessors would run, so small batches may take 32
or 16 rows. BLOCK_K 128 reads 256 contiguous bytes of a row at once. Eight warps keep the 64 x 128
sums of a large batch in registers; larger batches take several programs a tile, side by side, which
share the tile through the L2 cache. float32 uses no tensor cores (TF32 would round the inputs), so
its tiles are small for the sake of registers.

Stages times tile stay below 99 KB of shared memory, what an Ada GPU (sm_89) grants a block, and
below the 64 KB of an AMD compute unit, which Triton does not check when it compiles. The tests
compile every entry and assert these limits and no spills; times are not measured on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple


class TileConfig(NamedTuple):
    """One way to launch the scoring kernel."""

    block_b: int
    block_v: int
    block_k: int
    num_warps: int
    num_stages: int


_HALF = (
    TileConfig(16, 64, 128, 4, 4),
    TileConfig(16, 32, 128, 4, 4),
    TileConfig(16, 16, 128, 2, 4),
    TileConfig(32, 64, 128, 4, 4),
    TileConfig(32, 32, 128, 4, 4),
    TileConfig(64, 64, 64, 4, 4),
    TileConfig(128, 64, 64, 8, 4),
)
_FLOAT = (
    TileConfig(16, 64, 32, 4, 4),
    TileConfig(16, 32, 32, 4, 4),
    TileConfig(16, 16, 64, 2, 4),
    TileConfig(32, 64, 32, 4, 3),
    TileConfig(32, 32, 32, 4, 3),
    TileConfig(64, 64, 32, 8, 3),
)

MAX_BLOCK_V = 64
"""Slot tables are padded to a multiple of this, which every BLOCK_V divides."""

ENOUGH_PROGRAMS = 256
"""About two programs for each of the 132 multiprocessors of an H100."""


def tile_configs(backend: str, itemsize: int) -> tuple[TileConfig, ...]:
    """Return every shipped configuration for ``backend`` ("cuda", "hip") and head element size."""
    configs = _HALF if itemsize == 2 else _FLOAT
    if backend == "hip":  # one buffer is filled from registers while the other is read
        return tuple(config._replace(num_stages=2) for config in configs)
    return configs


UNALIGNED_BLOCK_K = 32
"""BLOCK_K for rows that do not start at multiples of 16 elements: narrow loads need an address and
a register each. No model that we know has such a hidden size; the kernel must only not spill."""


def choose_config(
    backend: str, itemsize: int, batch: int, smallest_list: int, aligned: bool = True
) -> TileConfig:
    """Return the configuration for a batch.

    Args:
        backend: "cuda" or "hip".
        itemsize: bytes of a head element.
        batch: rows.
        smallest_list: ids of the smallest list that is not empty; a batch of that language alone
            must still fill the GPU.
        aligned: whether the head's row stride is a multiple of 16 elements.
    """
    configs = tile_configs(backend, itemsize)
    if not aligned:
        configs = tuple(config._replace(block_k=UNALIGNED_BLOCK_K) for config in configs)
    block_b = next((c.block_b for c in configs if c.block_b >= batch), configs[-1].block_b)
    fitting = [config for config in configs if config.block_b == block_b]
    for config in fitting:  # from the largest BLOCK_V
        if smallest_list // config.block_v >= ENOUGH_PROGRAMS:
            return config
    return fitting[-1]
