"""What numba cannot say in vectors: loops over memory addresses, and bits as numbers.

Each function here is a numba intrinsic that emits LLVM code; addresses are int64, sizes are in
elements. float32 is computed in float32. bfloat16 lies in memory as its 16 bits, is widened when it
is loaded, and is rounded to nearest even when it is stored. A sum over k runs in the order of k in
each lane, and lanes are added in a fixed order: no result depends on what is computed beside it.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastmtp_sglang.serving.cpu.native.compiled import helper
from fastmtp_sglang.serving.cpu.native.emitter import (
    F32,
    I16,
    I32,
    I64,
    LANES,
    PANEL,
    ROWS_AT_ONCE,
    SUMS_AT_ONCE,
    Emitter,
)
from fastmtp_sglang.serving.cpu.native.machine import floats


def panel_product(paired_x: bool, paired_weights: bool) -> Any:
    """Return the intrinsic that multiplies up to ROWS_AT_ONCE rows by one packed panel of weights.

    Its arguments: rows; x, address of [rows, k], bfloat16 if `paired_x` (then k is even and the
    weights are paired too) and float32 otherwise; the distance of its rows in elements; panel,
    address of float32 [k, PANEL], or of pairs of bfloat16 [k / 2, PANEL, 2]; k; out, address of
    float32 [rows, PANEL]; the distance of its rows in elements.
    """

    @intrinsic
    def product(typing, rows, x, x_stride, panel, k, out, out_stride):
        def emit(context, builder, signature, args):
            e = Emitter(builder)
            e.choose(
                args[0],
                ROWS_AT_ONCE,
                lambda n: _emit_panel_product(e, n, paired_x, paired_weights, *args[1:]),
            )
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), emit

    return product


def _emit_panel_product(
    e: Emitter, rows: int, paired_x: bool, paired_weights: bool, *args: ir.Value
) -> None:
    x, x_stride, panel, k, out, out_stride = args
    inputs = [
        e.b.gep(e.pointer(x, I16 if paired_x else F32), [e.b.mul(x_stride, I64(row))])
        for row in range(rows)
    ]
    weights = e.pointer(panel, I32 if paired_weights else F32)
    places = [(row, half) for row in range(rows) for half in (0, 1)]

    def panel_row(i: ir.Value) -> list[ir.Value]:
        at = [e.b.add(e.b.mul(i, I64(PANEL)), I64(half * LANES)) for half in (0, 1)]
        if paired_weights:
            return [e.load_pairs(weights, place) for place in at]
        return [e.load(weights, place, False) for place in at]

    def add(sums: list[ir.Value], halves: Any, i: ir.Value) -> list[ir.Value]:
        values = [e.splat(e.b.load(e.b.gep(row, [i]))) for row in inputs]
        return [
            e.multiply_add(halves[half], values[row], sum_)
            for (row, half), sum_ in zip(places, sums, strict=True)
        ]

    def add_two(i: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        pairs, first = panel_row(i), e.b.shl(i, I64(1))
        if not paired_x:
            firsts, seconds = zip(*map(e.first_and_second, pairs), strict=True)
            return add(add(sums, firsts, first), seconds, e.b.add(first, I64(1)))
        values = [e.splat(e.load_pair(row, first)) for row in inputs]
        return [
            e.multiply_add_pairs(pairs[half], values[row], sum_)
            for (row, half), sum_ in zip(places, sums, strict=True)
        ]

    def add_last(_: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        firsts = [e.first_and_second(pairs)[0] for pairs in panel_row(whole)]
        return add(sums, firsts, e.b.sub(k, I64(1)))

    sums = [e.zero()] * (2 * rows)
    if paired_weights:
        whole = e.b.ashr(k, I64(1))
        sums = e.loop(whole, sums, add_two)
        if not paired_x:
            sums = e.loop(e.b.and_(k, I64(1)), sums, add_last)
    else:
        sums = e.loop(k, sums, lambda i, sums: add(sums, panel_row(i), i))
    target = e.pointer(out, F32)
    for (row, half), sum_ in zip(places, sums, strict=True):
        e.store(sum_, target, e.b.add(e.b.mul(out_stride, I64(row)), I64(half * LANES)))


@intrinsic
def dot(typing, x, y, n):
    """The dot product of two float32 vectors of n elements."""

    def emit(context, builder, signature, args):
        e = Emitter(builder)
        left, right, n = e.pointer(args[0], F32), e.pointer(args[1], F32), args[2]

        def step(i, sums):
            at = e.b.mul(i, I64(LANES))
            return [e.multiply_add(e.load(left, at, False), e.load(right, at, False), sums[0])]

        vectors = e.b.sdiv(n, I64(LANES))
        total = e.sum(e.loop(vectors, [e.zero()], step)[0])
        done = e.b.mul(vectors, I64(LANES))

        def last(i, sums):
            at = e.b.add(done, i)
            values = [e.b.load(e.b.gep(base, [at])) for base in (left, right)]
            return [e.b.fadd(sums[0], e.b.fmul(*values))]

        return e.loop(e.b.sub(n, done), [total], last)[0]

    return types.float32(types.int64, types.int64, types.int64), emit


def weighted_rows(vectors: int, lanes: int, bf16: bool) -> Any:
    """Return the intrinsic out[q, :vectors * lanes] = sum over t of weights[q, t] * row t.

    Its arguments: the number of q, at most SUMS_AT_ONCE; weights, address of float32; the distance
    of its rows in elements; slots, address of int64 [n]; n; base, where slot 0's row begins, and
    step, the bytes from slot to slot; out, address of float32; the distance of its rows. It adds
    the rows in their order.
    """

    @intrinsic
    def summed(typing, number, weights, stride, slots, n, base, step, out, out_stride):
        def emit(context, builder, signature, args):
            number, weights, stride, slots, n, base, step, out, out_stride = args
            e = Emitter(builder, lanes)
            factors, places, target = (
                e.pointer(address, kind)
                for address, kind in ((weights, F32), (slots, I64), (out, F32))
            )

            def of(count):
                starts = [e.b.gep(factors, [e.b.mul(stride, I64(q))]) for q in range(count)]
                cells = [(q, i) for q in range(count) for i in range(vectors)]

                def add_row(t, sums):
                    slot = e.b.load(e.b.gep(places, [t]))
                    row = e.pointer(e.b.add(base, e.b.mul(slot, step)), I16 if bf16 else F32)
                    values = [e.load(row, I64(i * lanes), bf16) for i in range(vectors)]
                    shares = [e.splat(e.b.load(e.b.gep(start, [t]))) for start in starts]
                    return [
                        e.multiply_add(values[i], shares[q], total)
                        for (q, i), total in zip(cells, sums, strict=True)
                    ]

                for (q, i), total in zip(
                    cells, e.loop(n, [e.zero()] * len(cells), add_row), strict=True
                ):
                    e.store(total, target, e.b.add(e.b.mul(out_stride, I64(q)), I64(i * lanes)))

            e.choose(number, SUMS_AT_ONCE, of)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), emit

    return summed


@intrinsic
def float_of_bits(typing, bits):
    """The float32 with these bits (the low 32 of an int64)."""

    def emit(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], I32), F32)

    return types.float32(types.int64), emit


@intrinsic
def power_of_two(typing, exponent):
    """2 ** exponent, for a whole float32 in -126..127."""

    def emit(context, builder, signature, args):
        biased = builder.add(builder.fptosi(args[0], I32), I32(127))
        return builder.bitcast(builder.shl(biased, I32(23)), F32)

    return types.float32(types.float32), emit


def _whole_and_rest(e: Emitter, n: ir.Value, vectors: Any, single: Any) -> None:
    """Call `vectors(at)` for every LANES of n elements and `single(at)` for each one left."""
    count = e.b.sdiv(n, I64(LANES))
    done = e.b.mul(count, I64(LANES))
    e.loop(count, [], lambda i, _: vectors(e.b.mul(i, I64(LANES))) or [])
    e.loop(e.b.sub(n, done), [], lambda i, _: single(e.b.add(done, i)) or [])


@intrinsic
def widen_row(typing, source, target, n):
    """target[:n], float32, = source[:n], bfloat16."""

    def emit(context, builder, signature, args):
        wide, one = Emitter(builder), Emitter(builder, 1)
        bits, numbers = wide.pointer(args[0], I16), wide.pointer(args[1], F32)
        _whole_and_rest(
            wide,
            args[2],
            lambda at: wide.store(wide.load(bits, at, True), numbers, at),
            lambda at: one.store(one.load(bits, at, True), numbers, at),
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@intrinsic
def round_row(typing, source, target, n):
    """target[:n], bfloat16, = source[:n], float32, to nearest, ties to even."""

    def emit(context, builder, signature, args):
        wide, one = Emitter(builder), Emitter(builder, 1)
        numbers, bits = wide.pointer(args[0], F32), wide.pointer(args[1], I16)
        _whole_and_rest(
            wide,
            args[2],
            lambda at: wide.store_rounded(wide.load(numbers, at, False), bits, at),
            lambda at: one.store_rounded(one.load(numbers, at, False), bits, at),
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), emit


@helper
def read_row(x, target, width, bf16):
    """target[:width], float32, = x."""
    if bf16:
        widen_row(x, target, width)
    else:
        numbers, copy = floats(x, width), floats(target, width)
        for i in range(width):
            copy[i] = numbers[i]


@helper
def write_row(x, target, width, bf16):
    """target[:width] = x, float32."""
    if bf16:
        round_row(x, target, width)
    else:
        numbers, copy = floats(x, width), floats(target, width)
        for i in range(width):
            copy[i] = numbers[i]


def key_panel(paired: bool, bf16: bool) -> Any:
    """Return the intrinsic that writes PANEL keys as the weights of `panel_product`.

    Its arguments: slots, address of int64 [PANEL]; base, where slot 0's key begins, and step, the
    bytes from slot to slot; size of a key, even if `paired`; panel, the address to write.
    """

    @intrinsic
    def written(typing, slots, base, step, size, panel):
        def emit(context, builder, signature, args):
            slots, base, step, size, panel = args
            e, one = Emitter(builder), Emitter(builder, 1)
            places = e.pointer(slots, I64)
            element = I32 if paired else I16 if bf16 else F32
            target = e.pointer(panel, I32 if paired else F32)
            length = e.b.ashr(size, I64(1)) if paired else size

            def half(i, _):
                first = e.b.mul(i, I64(LANES))
                keys = []
                for lane in range(LANES):
                    slot = e.b.load(e.b.gep(places, [e.b.add(first, I64(lane))]))
                    keys.append(e.pointer(e.b.add(base, e.b.mul(slot, step)), element))

                def put(value, at):
                    e.store(value, target, e.b.add(e.b.mul(at, I64(PANEL)), first))

                def block(at):
                    loaded = [
                        e.load_pairs(key, at) if paired else e.load(key, at, bf16) for key in keys
                    ]
                    for row, value in enumerate(e.transposed(loaded)):
                        put(value, e.b.add(at, I64(row)))

                def single(at):
                    values = [
                        e.b.load(e.b.gep(key, [at]))
                        if paired or not bf16
                        else e.b.extract_element(one.load(key, at, True), I32(0))
                        for key in keys
                    ]
                    beside = ir.Constant(ir.VectorType(values[0].type, LANES), ir.Undefined)
                    for lane, value in enumerate(values):
                        beside = e.b.insert_element(beside, value, I32(lane))
                    put(beside, at)

                _whole_and_rest(e, length, block, single)
                return []

            e.loop(I64(2), [], half)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), emit

    return written


@intrinsic
def largest(typing, x, n):
    """The largest of float32 x[:n], n > 0."""

    def emit(context, builder, signature, args):
        e = Emitter(builder)
        numbers, n = e.pointer(args[0], F32), args[1]

        def larger(x, y):
            return e.b.select(e.b.fcmp_ordered(">", x, y), x, y)

        count = e.b.sdiv(n, I64(LANES))
        lowest = ir.Constant(e.vector, [float("-inf")] * LANES)
        beside = e.loop(
            count,
            [lowest],
            lambda i, best: [larger(e.load(numbers, e.b.mul(i, I64(LANES)), False), best[0])],
        )[0]
        best = e.b.extract_element(beside, I32(0))
        for lane in range(1, LANES):
            best = larger(e.b.extract_element(beside, I32(lane)), best)
        done = e.b.mul(count, I64(LANES))
        return e.loop(
            e.b.sub(n, done),
            [best],
            lambda i, best: [larger(e.b.load(e.b.gep(numbers, [e.b.add(done, i)])), best[0])],
        )[0]

    return types.float32(types.int64, types.int64), emit
