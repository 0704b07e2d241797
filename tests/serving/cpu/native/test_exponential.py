"""exp in float32 against float64.

Alone: pytest tests/serving/cpu/native/test_exponential.py
"""

import numpy as np
from numba import njit

from fastmtp_sglang.serving.cpu.native.exponential import exp


@njit
def exps(x):
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = exp(x[i])
    return out


def test_two_units_in_the_last_place():
    x = np.linspace(-87, 88, 200_001, dtype=np.float32)
    expected = np.exp(x.astype(np.float64))
    units = np.spacing(expected.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(exps(x).astype(np.float64) - expected) / units) <= 2


def test_one_and_the_ends_of_float32():
    """Neither zero nor infinity comes out, whatever goes in: 0 * inf would be NaN."""
    x = np.array([0.0, -0.0, -87, -88, -1e30, -np.inf, 88, 89, 1e30, np.inf], dtype=np.float32)
    got = exps(x)
    assert got[0] == got[1] == 1
    assert (got[2:6] == got[2]).all()
    assert (got[6:] == got[6]).all()
    assert 0 < got[2] < 1e-37 < 1e38 < got[6] < np.inf


def test_it_never_falls():
    """Around the steps between powers of two as well: softmax keeps the order of scores."""
    steps = np.log(2) * (np.arange(-20, 21) + 0.5)
    x = steps[:, None] + np.linspace(-1e-4, 1e-4, 201)
    assert (np.diff(exps(x.astype(np.float32).flatten()).reshape(x.shape)) >= 0).all()
