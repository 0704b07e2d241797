"""What numba cannot say in vectors: loops over memory addresses, and bits as numbers.

Each function here is a numba intrinsic that emits LLVM code; addresses are int64, sizes are in
elements. float32 is computed in float32. bfloat16 lies in memory as its 16 bits, is widened when it
is loaded, and is rounded to nearest even when it is stored. A sum over k runs in the order of k in
each lane, and lanes are added in a fixed order: no result depends on what is computed beside it.
"""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fastmtp_sglang.serving.cpu.native.emitter import (
    F32,
    I16,
    I32,
    I64,
    LANES,
    PANEL,
    ROWS_AT_ONCE,
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
            after = builder.append_basic_block("after")
            numbers = range(1, ROWS_AT_ONCE + 1)
            blocks = [builder.append_basic_block("rows") for _ in numbers]
            choice = builder.switch(args[0], blocks[0])
            for number, block in zip(numbers, blocks, strict=True):
                choice.add_case(I64(number), block)
                builder.position_at_end(block)
                _emit_panel_product(Emitter(builder), number, paired_x, paired_weights, *args[1:])
                builder.branch(after)
            builder.position_at_end(after)
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
    """Return the intrinsic out[:vectors * lanes] = scale * sum over t of weights[t] * row t.

    Its arguments: weights, address of float32 [n]; slots, address of int64 [n]; n; base, where slot
    0's row begins, and step, the bytes from slot to slot; scale; out, address of float32. It adds
    the rows in their order.
    """

    @intrinsic
    def summed(typing, weights, slots, n, base, step, scale, out):
        def emit(context, builder, signature, args):
            weights, slots, n, base, step, scale, out = args
            e = Emitter(builder, lanes)
            factors, places = e.pointer(weights, F32), e.pointer(slots, I64)

            def add_row(t, sums):
                factor = e.splat(e.b.load(e.b.gep(factors, [t])))
                slot = e.b.load(e.b.gep(places, [t]))
                place = e.b.add(base, e.b.mul(slot, step))
                row = e.pointer(place, I16 if bf16 else F32)
                return [
                    e.multiply_add(e.load(row, I64(i * lanes), bf16), factor, sums[i])
                    for i in range(vectors)
                ]

            sums = e.loop(n, [e.zero()] * vectors, add_row)
            target, factor = e.pointer(out, F32), e.splat(scale)
            for i in range(vectors):
                e.store(e.b.fmul(sums[i], factor), target, I64(i * lanes))
            return context.get_dummy_value()

        whole = types.int64
        return types.void(whole, whole, whole, whole, whole, types.float32, whole), emit

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


@njit(error_model="numpy")
def read_row(x, target, width, bf16):
    """target[:width], float32, = x."""
    if bf16:
        widen_row(x, target, width)
    else:
        numbers, copy = floats(x, width), floats(target, width)
        for i in range(width):
            copy[i] = numbers[i]


@njit(error_model="numpy")
def write_row(x, target, width, bf16):
    """target[:width] = x, float32."""
    if bf16:
        round_row(x, target, width)
    else:
        numbers, copy = floats(x, width), floats(target, width)
        for i in range(width):
            copy[i] = numbers[i]


def key_scores(bf16: bool) -> Any:
    """Return the intrinsic out[t] = scale * query . key t, and the largest of them.

    Its arguments: query, address of float32 [size]; slots, address of int64 [n]; n; base, where
    slot 0's key begins, and step, the bytes from slot to slot; size; scale; out, address of float32
    [n].
    LANES keys are computed side by side, each in the order that it has alone.
    """

    @intrinsic
    def scored(typing, query, slots, n, base, step, size, scale, out):
        def emit(context, builder, signature, args):
            query, slots, n, base, step, size, scale, out = args
            e, one = Emitter(builder), Emitter(builder, 1)
            left, places, target = (
                e.pointer(address, kind)
                for address, kind in ((query, F32), (slots, I64), (out, F32))
            )

            def key(t):
                place = e.b.add(base, e.b.mul(e.b.load(e.b.gep(places, [t])), step))
                return e.pointer(place, I16 if bf16 else F32)

            def products(keys, reduce):
                """The sums of query * key for some keys, by `reduce` of their lanes, and a tail."""
                count = e.b.sdiv(size, I64(LANES))

                def inner(i, sums):
                    at = e.b.mul(i, I64(LANES))
                    x = e.load(left, at, False)
                    return [
                        e.multiply_add(x, e.load(row, at, bf16), total)
                        for row, total in zip(keys, sums, strict=True)
                    ]

                total = reduce(e.loop(count, [e.zero()] * len(keys), inner))
                done = e.b.mul(count, I64(LANES))

                def rest(i, sums):
                    at = e.b.add(done, i)
                    x = e.b.load(e.b.gep(left, [at]))
                    values = [
                        e.b.fmul(x, e.b.extract_element(one.load(row, at, bf16), I32(0)))
                        for row in keys
                    ]
                    if len(keys) == 1:
                        return [e.b.fadd(sums[0], values[0])]
                    beside = ir.Constant(e.vector, ir.Undefined)
                    for lane, value in enumerate(values):
                        beside = e.b.insert_element(beside, value, I32(lane))
                    return [e.b.fadd(sums[0], beside)]

                return e.loop(e.b.sub(size, done), [total], rest)[0]

            groups = e.b.sdiv(n, I64(LANES))
            factor = e.splat(scale)

            def group(i, best):
                first = e.b.mul(i, I64(LANES))
                keys = [key(e.b.add(first, I64(lane))) for lane in range(LANES)]
                values = e.b.fmul(products(keys, e.sums), factor)
                e.store(values, target, first)
                return [e.b.select(e.b.fcmp_ordered(">", values, best[0]), values, best[0])]

            best = e.loop(groups, [ir.Constant(e.vector, [float("-inf")] * LANES)], group)[0]
            largest = ir.Constant(F32, float("-inf"))
            for lane in range(LANES):
                value = e.b.extract_element(best, I32(lane))
                largest = e.b.select(e.b.fcmp_ordered(">", value, largest), value, largest)
            done = e.b.mul(groups, I64(LANES))

            def last(i, best):
                t = e.b.add(done, i)
                value = e.b.fmul(products([key(t)], lambda sums: e.sum(sums[0])), scale)
                e.b.store(value, e.b.gep(target, [t]))
                return [e.b.select(e.b.fcmp_ordered(">", value, best[0]), value, best[0])]

            return e.loop(e.b.sub(n, done), [largest], last)[0]

        whole = types.int64
        arguments = (whole, whole, whole, whole, whole, whole, types.float32, whole)
        return types.float32(*arguments), emit

    return scored
