"""The frozen table of tiles, and which of them a batch gets.

What each of them compiles to is shown by test_triton_draft_compilation.py.
Alone: pytest tests/kernels/test_tile_configs.py
"""

import pytest

from fastmtp_kernels.tile_configs import (
    MAX_BLOCK_V,
    UNALIGNED_BLOCK_K,
    choose_config,
    tile_configs,
)

KINDS = [(backend, itemsize) for backend in ("cuda", "hip") for itemsize in (2, 4)]


@pytest.mark.parametrize(
    ("batch", "smallest_list", "block_b", "block_v"),
    [
        (1, 32768, 16, 64),
        (16, 16384, 16, 64),
        (17, 16384, 32, 64),
        (16, 8192, 16, 32),
        (16, 4096, 16, 16),
        (32, 4096, 32, 32),
        (256, 0, 128, 64),
    ],
)
def test_the_tile_follows_batch_and_list(
    batch: int, smallest_list: int, block_b: int, block_v: int
):
    config = choose_config("cuda", 2, batch, smallest_list)
    assert (config.block_b, config.block_v) == (block_b, block_v)


@pytest.mark.parametrize(("backend", "itemsize"), KINDS)
def test_every_choice_is_one_of_the_table(backend: str, itemsize: int):
    """So that what is compiled ahead, and tested, is all that ever runs."""
    shipped = set(tile_configs(backend, itemsize))
    for batch in (1, 16, 17, 64, 65, 128, 129, 4096):
        for listed in (0, 1, 4096, 16384, 10**6):
            chosen = choose_config(backend, itemsize, batch, listed)
            assert chosen in shipped
            assert chosen.block_b >= min(batch, max(config.block_b for config in shipped))
            narrow = choose_config(backend, itemsize, batch, listed, aligned=False)
            assert narrow == chosen._replace(block_k=UNALIGNED_BLOCK_K)


@pytest.mark.parametrize(("backend", "itemsize"), KINDS)
def test_slot_tables_fit_every_tile(backend: str, itemsize: int):
    for config in tile_configs(backend, itemsize):
        assert MAX_BLOCK_V % config.block_v == 0
        assert config.num_stages == 2 or backend == "cuda"
