"""Products with packed weights: float64's values, and bits that depend on the row alone.

Alone: pytest tests/serving/cpu/native/test_product.py
"""

import pytest
import torch

from fastmtp_sglang.serving.cpu.native import tiles
from fastmtp_sglang.serving.cpu.native.emitter import ROWS_AT_ONCE
from fastmtp_sglang.serving.cpu.native.packing import Packed
from fastmtp_sglang.serving.cpu.native.passes import SWEEP
from fastmtp_sglang.serving.cpu.native.product import FLOATS, PAIRS, TILES, way_to_read

SEED = 20250918
DTYPES = [torch.float32, torch.bfloat16]
# (outputs, inputs): below, between and beyond whole panels and tiles, and a layer of SmolLM2's.
SHAPES = [(1, 1), (1, 7), (7, 33), (33, 7), (40, 32), (64, 129), (130, 1000), (192, 576)]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED + seed)).to(dtype)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_float64s(engine, shape, dtype, weight_dtype, bias):
    outputs, inputs = shape
    weight = random(*shape, seed=0, dtype=weight_dtype)
    x = random(3, 3, inputs, seed=1, dtype=dtype)
    offset = random(outputs, seed=2) if bias else None
    expected = x.double() @ weight.double().T + (offset.double() if bias else 0)
    got = engine.product(x, Packed.of(weight), offset)
    assert got.dtype == dtype
    scale = expected.abs().max().item()
    # float32 sums; bfloat16 is rounded once, at the end.
    rounding = 2**-8 if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(got.double(), expected, rtol=rounding, atol=3e-6 * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_of_a_row_depend_on_no_other_row_and_no_thread(engines, shape, dtype):
    """Every number of rows of a pass, each row at another place, and more than one sweep."""
    packed = Packed.of(random(*shape, seed=3, dtype=dtype))
    bias = random(shape[0], seed=4)
    x = random(SWEEP + 5, shape[1], seed=5, dtype=dtype)
    whole = engines[0].product(x, packed, bias)
    many = len(x)
    for engine in engines:
        assert torch.equal(engine.product(x, packed, bias), whole)
        for rows in (*range(1, 2 * ROWS_AT_ONCE + 2), *range(31, 35), *range(63, 67)):
            assert torch.equal(engine.product(x[:rows], packed, bias), whole[:rows])
            last = engine.product(x[many - rows :], packed, bias)
            assert torch.equal(last, whole[many - rows :])


def test_rows_that_lie_apart(engine):
    """A slice of a wider projection is read where it lies."""
    packed, wide = Packed.of(random(40, 16, seed=6)), random(9, 48, seed=7)
    expected = engine.product(wide[:, 16:32].contiguous(), packed)
    assert torch.equal(engine.product(wide[:, 16:32], packed), expected)


def test_no_rows_give_no_rows(engine):
    assert engine.product(torch.empty(0, 8), Packed.of(torch.ones(5, 8))).shape == (0, 5)


def test_a_system_that_denies_tiles_gets_the_product_of_pairs(engine, monkeypatch):
    """The registers of AMX want a permission, which a sandbox may not give."""
    packed, x = Packed.of(random(40, 64, seed=8, dtype=DTYPES[1])), random(3, 64, seed=9).bfloat16()
    expected = x.double() @ packed.rows().double().T
    monkeypatch.setattr(tiles, "allowed", lambda: False)
    assert way_to_read(64) in (FLOATS, PAIRS)
    torch.testing.assert_close(engine.product(x, packed).double(), expected, rtol=2**-8, atol=1e-4)


def test_tiles_are_used_where_all_of_their_inputs_are_filled(monkeypatch):
    monkeypatch.setattr(tiles, "allowed", lambda: True)
    used = [inputs for inputs in (1, 32, 33, 48, 576) if way_to_read(inputs) == TILES]
    assert used == [32, 576]
