"""Shapes of code that are said once: sums side by side, columns of rows, one case of many.

Alone: pytest tests/serving/cpu/native/test_emitter.py
"""

import numpy as np
import pytest
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fastmtp_sglang.serving.cpu.native.emitter import F32, I64, LANES, Emitter

SEED = 20250918


@intrinsic
def _sums(typing, rows, beside, alone):
    """Of LANES vectors: their sums by `sums`, and each by `sum`."""

    def emit(context, builder, signature, args):
        e = Emitter(builder)
        source, beside, alone = (e.pointer(address, F32) for address in args)
        vectors = [e.load(source, I64(i * LANES), False) for i in range(LANES)]
        e.store(e.sums(vectors), beside, I64(0))
        for i, vector in enumerate(vectors):
            builder.store(e.sum(vector), builder.gep(alone, [I64(i)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic
def _transposed(typing, rows, columns):
    def emit(context, builder, signature, args):
        e = Emitter(builder)
        source, target = (e.pointer(address, F32) for address in args)
        vectors = [e.load(source, I64(i * LANES), False) for i in range(LANES)]
        for i, vector in enumerate(e.transposed(vectors)):
            e.store(vector, target, I64(i * LANES))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def _chosen(typing, number, out):
    def emit(context, builder, signature, args):
        e = Emitter(builder)
        target = e.pointer(args[1], ir.IntType(64))
        e.choose(args[0], 3, lambda n: builder.store(I64(10 * n), target))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@njit
def sums(rows, beside, alone):
    _sums(rows.ctypes.data, beside.ctypes.data, alone.ctypes.data)


@njit
def transposed(rows, columns):
    _transposed(rows.ctypes.data, columns.ctypes.data)


@njit
def chosen(number, out):
    _chosen(number, out.ctypes.data)


def test_sums_side_by_side_have_the_bits_of_each_alone():
    """So that a row's result is the same whether it is computed beside others or not."""
    scale = np.logspace(-4, 4, LANES, dtype=np.float32)
    rows = np.random.default_rng(SEED).standard_normal((LANES, LANES)).astype(np.float32) * scale
    beside, alone = (np.zeros(LANES, dtype=np.float32) for _ in range(2))
    sums(rows, beside, alone)
    assert beside.tolist() == alone.tolist()
    exact = rows.astype(np.float64).sum(1)
    np.testing.assert_allclose(alone, exact, rtol=0, atol=1e-6 * np.abs(rows).sum(1).max())


def test_columns():
    rows = np.arange(LANES * LANES, dtype=np.float32).reshape(LANES, LANES)
    columns = np.zeros_like(rows)
    transposed(rows, columns)
    assert (columns == rows.T).all()


@pytest.mark.parametrize(("number", "result"), [(1, 10), (2, 20), (3, 30)])
def test_one_case_of_many(number, result):
    out = np.zeros(1, dtype=np.int64)
    chosen(number, out)
    assert out[0] == result
