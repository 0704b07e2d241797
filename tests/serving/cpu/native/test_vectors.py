"""Loops over memory at every length around whole vectors: values, and nothing beyond the end.

Products and attention are tested in test_product.py and test_attention.py; numbers are random from
SEED. Alone: pytest tests/serving/cpu/native/test_vectors.py
"""

import numpy as np
import pytest
import torch
from numba import njit

from fastmtp_sglang.serving.cpu.native import vectors
from fastmtp_sglang.serving.cpu.native.emitter import LANES

SEED = 20250918
LENGTHS = [0, 1, LANES - 1, LANES, LANES + 1, 3 * LANES, 5 * LANES + 3]


def random(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(SEED + seed).standard_normal(n, dtype=np.float32)


@njit
def dot(x, y, n):
    return vectors.dot(x.ctypes.data, y.ctypes.data, n)


@njit
def largest(x, n):
    return vectors.largest(x.ctypes.data, n)


@njit
def widen(x, y, n):
    vectors.widen_row(x.ctypes.data, y.ctypes.data, n)


@njit
def shorten(x, y, n):
    vectors.round_row(x.ctypes.data, y.ctypes.data, n)


@njit
def power(exponents):
    out = np.empty_like(exponents)
    for i in range(len(out)):
        out[i] = vectors.power_of_two(exponents[i])
    return out


@njit
def of_bits(bits):
    return vectors.float_of_bits(bits)


@pytest.mark.parametrize("n", LENGTHS)
def test_dot(n):
    x, y = (np.append(random(n, seed), np.float32(np.nan)) for seed in (0, 1))
    expected = x[:n].astype(np.float64) @ y[:n].astype(np.float64)
    assert dot(x, y, n) == pytest.approx(expected, abs=1e-6 * (1 + n))


@pytest.mark.parametrize("n", LENGTHS[1:])
def test_the_largest_wherever_it_lies(n):
    x = np.append(-1 - np.abs(random(n)), np.float32(9))
    for place in range(n):
        one = x.copy()
        one[place] = -0.5
        assert largest(one, n) == np.float32(-0.5)
    assert largest(np.full(n, -np.inf, dtype=np.float32), n) == -np.inf


@pytest.mark.parametrize("n", LENGTHS)
def test_rows_are_widened_and_rounded_to_their_end(n):
    numbers = torch.from_numpy(random(n))
    rounded = numbers.bfloat16()
    bits = np.full(n + 2, 7, dtype=np.uint16)
    shorten(numbers.numpy(), bits, n)
    assert bits[:n].tolist() == rounded.view(torch.uint16).tolist()
    back = np.full(n + 2, 7, dtype=np.float32)
    widen(bits, back, n)
    assert back[:n].tolist() == rounded.float().tolist()
    assert (bits[n:] == 7).all()
    assert (back[n:] == 7).all()


def test_powers_of_two():
    exponents = np.arange(-126, 128, dtype=np.float32)
    assert (power(exponents) == np.exp2(exponents.astype(np.float64))).all()


@pytest.mark.parametrize("value", [1e-5, 0.0, -2.5, np.inf])
def test_the_bits_of_a_float32_in_an_int64(value):
    """The upper half says only that it is no address."""
    number = np.float32(value)
    for upper in (0, -1 << 32):
        assert of_bits(int(number.view(np.int32)) % 2**32 + upper) == number
