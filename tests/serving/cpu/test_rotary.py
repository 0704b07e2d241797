"""Rotary positions against a float64 reference and SGLang's, and row by row.

Alone: pytest tests/serving/cpu/test_rotary.py
"""

import pytest
import torch
from sglang.srt.layers.rotary_embedding import RotaryEmbedding

from fastmtp_sglang.serving.cpu.rotary import rotate

HEADS, KEY_HEADS, SIZE = 9, 3, 64
DTYPES = [torch.float32, torch.bfloat16]
EPS = {torch.float32: 2e-6, torch.bfloat16: 2**-7}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def rows(count: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(count, width, generator=generator()).to(dtype)


def rotary(is_neox_style: bool = True, rotary_dim: int = SIZE) -> RotaryEmbedding:
    return RotaryEmbedding(SIZE, rotary_dim, 4096, 10000, is_neox_style, torch.float32)


def query_and_key(count: int, dtype: torch.dtype, adjacent: bool) -> tuple:
    projected = rows(count, (HEADS + 2 * KEY_HEADS) * SIZE, dtype)
    query, key, _ = projected.split([HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE], dim=-1)
    return (query, key) if adjacent else (query.clone(), key.clone())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adjacent", [False, True])
@torch.no_grad()
def test_rotation(dtype, adjacent):
    op = rotary()
    positions = torch.randint(0, 4096, (40,), generator=generator())
    query, key = query_and_key(40, dtype, adjacent)
    got = rotate(op, positions, query, key)
    angles = positions.double().unsqueeze(1) / 10000 ** (torch.arange(0, SIZE, 2).double() / SIZE)
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    for actual, x in zip(got, (query, key), strict=True):
        assert actual.shape == x.shape
        first, second = x.double().unflatten(1, (-1, SIZE)).chunk(2, dim=-1)
        expected = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        # The cache of angles is float32: positions of thousands leave 1e-4 of a turn.
        torch.testing.assert_close(
            actual.double(), expected.flatten(1), rtol=0, atol=max(2e-3, 5 * EPS[dtype])
        )
    stock = op.forward_native(positions, query, key)
    for actual, theirs in zip(got, stock, strict=True):
        torch.testing.assert_close(actual, theirs, rtol=EPS[dtype], atol=4 * EPS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_row_of_a_rotation_depends_on_no_other(dtype):
    op, positions = rotary(), torch.arange(100, 140)
    query, key = query_and_key(40, dtype, adjacent=True)
    together = rotate(op, positions, query, key)
    for count in (1, 2, 5, 16):
        alone = rotate(op, positions[:count], query[:count], key[:count])
        for actual, expected in zip(alone, together, strict=True):
            assert torch.equal(actual, expected[:count])


@torch.no_grad()
def test_positions_that_are_moved_in_place():
    op, positions = rotary(), torch.arange(8)
    query, key = query_and_key(8, torch.float32, adjacent=True)
    rotate(op, positions, query, key)
    positions += 1
    for actual, stock in zip(
        rotate(op, positions, query, key),
        op.forward_native(positions, query, key),
        strict=True,
    ):
        torch.testing.assert_close(actual, stock, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("options", [{"is_neox_style": False}, {"rotary_dim": 32}])
@torch.no_grad()
def test_special_rotations_are_sglangs(options):
    op, positions = rotary(**options), torch.arange(8)
    query, key = query_and_key(8, torch.float32, adjacent=True)
    got, stock = (
        rotate(op, positions, query, key),
        op.forward_native(positions, query, key),
    )
    for actual, theirs in zip(got, stock, strict=True):
        assert torch.equal(actual, theirs)


@torch.no_grad()
def test_neighbours_in_memory_are_not_one_projection():
    """Two tensors of their own that happen to lie side by side."""
    op, positions, width = rotary(), torch.arange(1), HEADS * SIZE
    memory = bytearray(rows(1, 2 * width, torch.float32).numpy().tobytes())
    query, key = (
        torch.frombuffer(memory, dtype=torch.float32, count=width, offset=offset).view(1, width)
        for offset in (0, 4 * width)
    )
    got, stock = rotate(op, positions, query, key), op.forward_native(positions, query, key)
    for actual, theirs in zip(got, stock, strict=True):
        torch.testing.assert_close(actual, theirs, rtol=2e-6, atol=1e-5)
