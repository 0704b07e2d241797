"""The product of bfloat16 rows with packed weights by tile registers (Intel AMX).

A tile is 16 rows of 64 bytes: 16 rows of x with 32 inputs, or 16 pairs of inputs of 16 outputs as a
panel holds them. One instruction multiplies two of them, so that 16 rows cost what one does. Of 32
inputs it adds up the even ones and the odd ones, each in their order, and then both to the sum: a
row's bits are those of its own values, whatever lies in the tile's other rows.

Linux lets a process use these registers once it has asked (arch_prctl(2), ARCH_REQ_XCOMP_PERM).
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastmtp_sglang.serving.cpu.native.emitter import I64, MULTIPLIES_TILES, PANEL, Emitter

# Rows that one pass over a panel computes, and inputs that one tile holds.
TILE_ROWS, TILE_INPUTS = 32, 32
_I8 = ir.IntType(8)
_HALF, _CONFIGURATION_BYTES = 16, 64
# x86-64's number of arch_prctl(2), its request, and the registers' data among the states.
_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
# Sums [row half][output half], x by row half, weights by output half.
_SUMS, _X, _WEIGHTS = ((0, 1), (2, 3)), (4, 5), (6, 7)


@cache
def allowed() -> bool:
    """Whether this processor has tiles and the system lets this process use them."""
    if not MULTIPLIES_TILES or platform.system() != "Linux":
        return False
    request = ctypes.CDLL(None, use_errno=True).syscall
    return request(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


@intrinsic
def tile_product(typing, rows, x, x_stride, panel, k, out, out_stride):
    """Multiply up to TILE_ROWS rows by one packed panel; only where tiles are `allowed`.

    Arguments: rows; x, address of bfloat16 [rows, k]; the distance of its rows in elements; panel,
    address of pairs of bfloat16 [k / 2, PANEL, 2]; k, a multiple of TILE_INPUTS; out, address of
    float32 [rows, PANEL]; the distance of its rows in elements.
    """

    def emit(context, builder, signature, args):
        if MULTIPLIES_TILES:
            _emit(_Tiles(builder), *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), emit


class _Tiles:
    """The instructions, by the numbers of the registers."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.e = Emitter(builder)

    def call(self, name: str, *args: int | ir.Value) -> None:
        values = [_I8(a) if isinstance(a, int) else a for a in args]
        signature = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        function = cgutils.get_or_insert_function(self.e.b.module, signature, f"llvm.x86.{name}")
        self.e.b.call(function, values)

    def configure(self, first: ir.Value, second: ir.Value) -> None:
        """Rows in the first half of the sums and of x, and in the second; weights are whole."""
        b = self.e.b
        kind = ir.ArrayType(_I8, _CONFIGURATION_BYTES)
        at = b.bitcast(cgutils.alloca_once(b, kind), _I8.as_pointer())
        words = b.bitcast(at, I64.as_pointer())
        wide = sum(64 << (16 * i) for i in range(4))  # bytes of a row, for four tiles
        for word, value in enumerate((1, 0, wide, wide, 0, 0, 0, 0)):
            b.store(I64(value), b.gep(words, [I64(word)]))
        rows = [*[first] * 2, *[second] * 2, first, second, *[I64(_HALF)] * 2]
        for tile, number in enumerate(rows):
            b.store(b.trunc(number, _I8), b.gep(at, [I64(48 + tile)]))
        self.call("ldtilecfg", at)


def _emit(tiles: _Tiles, rows: ir.Value, *args: ir.Value) -> None:
    b = tiles.e.b
    first = b.select(b.icmp_signed("<", rows, I64(_HALF)), rows, I64(_HALF))
    second = b.sub(rows, first)
    with b.if_else(b.icmp_signed(">", second, I64(0))) as (both, one):
        with both:
            tiles.configure(first, second)
            _emit_halves(tiles, 2, *args)
        with one:
            # A tile of no rows is not allowed, so the second half has one that nobody reads.
            tiles.configure(first, I64(1))
            _emit_halves(tiles, 1, *args)
    tiles.call("tilerelease")


def _emit_halves(tiles: _Tiles, row_halves: int, *args: ir.Value) -> None:
    x, x_stride, panel, k, out, out_stride = args
    e, b = tiles.e, tiles.e.b
    x_step, out_step = b.mul(x_stride, I64(2)), b.mul(out_stride, I64(4))

    def rows_from(base: ir.Value, step: ir.Value) -> list[ir.Value]:
        return [b.add(base, b.mul(step, I64(_HALF * half))) for half in range(row_halves)]

    sums = [(half, side, _SUMS[half][side]) for half in range(row_halves) for side in (0, 1)]
    for _, _, tile in sums:
        tiles.call("tilezero", tile)
    xs = rows_from(x, x_step)

    def step(i: ir.Value, values: list[ir.Value]) -> list[ir.Value]:
        inputs = b.mul(i, I64(TILE_INPUTS))
        weights = b.add(panel, b.mul(inputs, I64(2 * PANEL)))
        for side in (0, 1):
            at = e.pointer(b.add(weights, I64(64 * side)), _I8)
            tiles.call("tileloadd64", _WEIGHTS[side], at, I64(4 * PANEL))
        for half, base in enumerate(xs):
            at = e.pointer(b.add(base, b.mul(inputs, I64(2))), _I8)
            tiles.call("tileloadd64", _X[half], at, x_step)
        for half, side, tile in sums:
            tiles.call("tdpbf16ps", tile, _X[half], _WEIGHTS[side])
        return values

    e.loop(b.sdiv(k, I64(TILE_INPUTS)), [], step)
    outs = rows_from(out, out_step)
    for half, side, tile in sums:
        at = e.pointer(b.add(outs[half], I64(64 * side)), _I8)
        tiles.call("tilestored64", tile, at, out_step)
