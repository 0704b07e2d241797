"""What numba cannot say: vector loops over memory addresses, atomics, and bits as numbers.

Each function here is a numba intrinsic that emits LLVM code; addresses are int64, sizes are in
elements. float32 is computed in float32. bfloat16 lies in memory as its 16 bits, is widened when it
is loaded, and is rounded to nearest even when it is stored. A sum over k runs in the order of k in
each lane, and lanes are added in a fixed order: no result depends on what is computed beside it.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_HOST = llvm.get_host_cpu_features()
# float32 values in a register; two of them make a panel.
LANES = 16 if _HOST.get("avx512f") else 8 if _HOST.get("avx2") else 4
PANEL = 2 * LANES
# Rows that one pass over a panel computes: with two weight registers and one for the input, as many
# accumulators as AVX2's 16 registers hold.
ROWS_AT_ONCE = 6
_FUSED = bool(_HOST.get("fma") or _HOST.get("neon") or _HOST.get("avx512f"))

_F32, _I16, _I32, _I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


class _Emitter:
    """An IR builder with the few shapes of code that the loops below share."""

    def __init__(self, builder: ir.IRBuilder, lanes: int = LANES) -> None:
        self.b = builder
        self.lanes = lanes
        self.vector = ir.VectorType(_F32, lanes)

    def pointer(self, address: ir.Value, element: ir.Type) -> ir.Value:
        return self.b.inttoptr(address, element.as_pointer())

    def zero(self) -> ir.Constant:
        return ir.Constant(self.vector, [0.0] * self.lanes)

    def splat(self, scalar: ir.Value, of: ir.Type | None = None) -> ir.Value:
        vector = of or self.vector
        one = self.b.insert_element(ir.Constant(vector, ir.Undefined), scalar, _I32(0))
        mask = ir.Constant(ir.VectorType(_I32, self.lanes), [0] * self.lanes)
        return self.b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)

    def load(self, base: ir.Value, index: ir.Value, bf16: bool) -> ir.Value:
        """`lanes` elements from `base`[index] on, as float32."""
        at = self.b.gep(base, [index])
        if not bf16:
            loaded = self.b.load(self.b.bitcast(at, self.vector.as_pointer()))
            loaded.align = 4
            return loaded
        wide = ir.VectorType(_I32, self.lanes)
        half = self.b.load(self.b.bitcast(at, ir.VectorType(_I16, self.lanes).as_pointer()))
        half.align = 2
        shift = ir.Constant(wide, [16] * self.lanes)
        return self.b.bitcast(self.b.shl(self.b.zext(half, wide), shift), self.vector)

    def store(self, value: ir.Value, base: ir.Value, index: ir.Value) -> None:
        at = self.b.gep(base, [index])
        self.b.store(value, self.b.bitcast(at, self.vector.as_pointer())).align = 4

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        if not _FUSED:
            return self.b.fadd(self.b.fmul(x, y), z)
        name = f"llvm.fma.v{self.lanes}f32"
        signature = ir.FunctionType(self.vector, [self.vector] * 3)
        return self.b.call(
            cgutils.get_or_insert_function(self.b.module, signature, name), [x, y, z]
        )

    def sum(self, value: ir.Value) -> ir.Value:
        """The lanes added up, the upper half to the lower half until one is left."""
        width = self.lanes
        while width > 1:
            width //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            kind = ir.VectorType(_I32, width)
            low = ir.Constant(kind, list(range(width)))
            high = ir.Constant(kind, list(range(width, 2 * width)))
            value = self.b.fadd(
                self.b.shuffle_vector(value, undefined, low),
                self.b.shuffle_vector(value, undefined, high),
            )
        return self.b.extract_element(value, _I32(0))

    def loop(
        self,
        count: ir.Value,
        starts: list[ir.Value],
        body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
    ) -> list[ir.Value]:
        """`for i in range(count): values = body(i, values)`; the values after it."""
        before = self.b.block
        head = self.b.append_basic_block("head")
        inside = self.b.append_basic_block("inside")
        after = self.b.append_basic_block("after")
        self.b.branch(head)
        self.b.position_at_end(head)
        i = self.b.phi(_I64)
        i.add_incoming(_I64(0), before)
        values = [self.b.phi(start.type) for start in starts]
        for value, start in zip(values, starts, strict=True):
            value.add_incoming(start, before)
        self.b.cbranch(self.b.icmp_signed("<", i, count), inside, after)
        self.b.position_at_end(inside)
        results = body(i, values)
        end = self.b.block
        i.add_incoming(self.b.add(i, _I64(1)), end)
        for value, result in zip(values, results, strict=True):
            value.add_incoming(result, end)
        self.b.branch(head)
        self.b.position_at_end(after)
        return values


def panel_product(rows: int, bf16: bool) -> Any:
    """Return the intrinsic that multiplies `rows` rows by one packed panel of weights.

    Its arguments: x, address of float32 [rows, k]; the distance of its rows in elements; panel,
    address of [k, PANEL] weights, bfloat16 or float32; k; out, address of float32 [rows, PANEL];
    the distance of its rows in elements.
    """

    @intrinsic
    def product(typing, x, x_stride, panel, k, out, out_stride):
        def emit(context, builder, signature, args):
            x, x_stride, panel, k, out, out_stride = args
            e = _Emitter(builder)
            inputs = [
                e.b.gep(e.pointer(x, _F32), [e.b.mul(x_stride, _I64(row))]) for row in range(rows)
            ]
            weights = e.pointer(panel, _I16 if bf16 else _F32)

            def step(i, sums):
                start = e.b.mul(i, _I64(PANEL))
                halves = [
                    e.load(weights, e.b.add(start, _I64(half * LANES)), bf16) for half in (0, 1)
                ]
                results = []
                for row in range(rows):
                    value = e.splat(e.b.load(e.b.gep(inputs[row], [i])))
                    for half in (0, 1):
                        results.append(e.multiply_add(halves[half], value, sums[2 * row + half]))
                return results

            sums = e.loop(k, [e.zero()] * (2 * rows), step)
            target = e.pointer(out, _F32)
            for row in range(rows):
                for half in (0, 1):
                    place = e.b.add(e.b.mul(out_stride, _I64(row)), _I64(half * LANES))
                    e.store(sums[2 * row + half], target, place)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), emit

    return product


def dot(bf16: bool) -> Any:
    """Return the intrinsic for the dot product of float32 `x` with `y`, n elements each."""

    @intrinsic
    def product(typing, x, y, n):
        def emit(context, builder, signature, args):
            x, y, n = args
            e, tail = _Emitter(builder), _Emitter(builder, 1)
            left, right = e.pointer(x, _F32), e.pointer(y, _I16 if bf16 else _F32)

            def step(i, sums):
                at = e.b.mul(i, _I64(LANES))
                return [e.multiply_add(e.load(left, at, False), e.load(right, at, bf16), sums[0])]

            vectors = e.b.sdiv(n, _I64(LANES))
            total = e.sum(e.loop(vectors, [e.zero()], step)[0])
            done = e.b.mul(vectors, _I64(LANES))

            def last(i, sums):
                at = e.b.add(done, i)
                value = e.b.fmul(
                    e.b.load(e.b.gep(left, [at])),
                    e.b.extract_element(tail.load(right, at, bf16), _I32(0)),
                )
                return [e.b.fadd(sums[0], value)]

            return e.loop(e.b.sub(n, done), [total], last)[0]

        return types.float32(types.int64, types.int64, types.int64), emit

    return product


def weighted_rows(vectors: int, lanes: int, bf16: bool) -> Any:
    """Return the intrinsic out[:vectors * lanes] = scale * sum over t of weights[t] * row t.

    Its arguments: weights, address of float32 [n]; offsets, address of int64 [n], where row t
    begins, in bytes behind `base`; n; base, the address of the rows' first element; scale; out,
    address of float32. It adds the rows in their order.
    """

    @intrinsic
    def summed(typing, weights, offsets, n, base, scale, out):
        def emit(context, builder, signature, args):
            weights, offsets, n, base, scale, out = args
            e = _Emitter(builder, lanes)
            factors, places = e.pointer(weights, _F32), e.pointer(offsets, _I64)

            def step(t, sums):
                factor = e.splat(e.b.load(e.b.gep(factors, [t])))
                place = e.b.add(base, e.b.load(e.b.gep(places, [t])))
                row = e.pointer(place, _I16 if bf16 else _F32)
                return [
                    e.multiply_add(e.load(row, _I64(i * lanes), bf16), factor, sums[i])
                    for i in range(vectors)
                ]

            sums = e.loop(n, [e.zero()] * vectors, step)
            target, factor = e.pointer(out, _F32), e.splat(scale)
            for i in range(vectors):
                e.store(e.b.fmul(sums[i], factor), target, _I64(i * lanes))
            return context.get_dummy_value()

        whole = types.int64
        return types.void(whole, whole, whole, whole, types.float32, whole), emit

    return summed


@intrinsic
def float_of_bits(typing, bits):
    """The float32 with these bits (the low 32 of an int64)."""

    def emit(context, builder, signature, args):
        return builder.bitcast(builder.trunc(args[0], _I32), _F32)

    return types.float32(types.int64), emit


@intrinsic
def power_of_two(typing, exponent):
    """2 ** exponent, for a whole float32 in -126..127."""

    def emit(context, builder, signature, args):
        biased = builder.add(builder.fptosi(args[0], _I32), _I32(127))
        return builder.bitcast(builder.shl(biased, _I32(23)), _F32)

    return types.float32(types.float32), emit


@intrinsic
def widened(typing, bits):
    """The float32 of a bfloat16's 16 bits."""

    def emit(context, builder, signature, args):
        return builder.bitcast(builder.shl(builder.zext(args[0], _I32), _I32(16)), _F32)

    return types.float32(types.uint16), emit


@intrinsic
def rounded(typing, value):
    """The 16 bits of the bfloat16 nearest to a float32, ties to even."""

    def emit(context, builder, signature, args):
        bits = builder.bitcast(args[0], _I32)
        odd = builder.and_(builder.lshr(bits, _I32(16)), _I32(1))
        near = builder.lshr(builder.add(builder.add(bits, _I32(0x7FFF)), odd), _I32(16))
        is_nan = builder.fcmp_unordered("uno", args[0], args[0])
        return builder.trunc(builder.select(is_nan, _I32(0x7FC0), near), _I16)

    return types.uint16(types.float32), emit


@intrinsic
def floats(typing, address, count):
    """The float32 array of `count` elements at an address."""
    return _array(types.float32, typing, address, count)


@intrinsic
def halves(typing, address, count):
    """The uint16 array of `count` elements at an address."""
    return _array(types.uint16, typing, address, count)


@intrinsic
def integers(typing, address, count):
    """The int64 array of `count` elements at an address."""
    return _array(types.int64, typing, address, count)


@intrinsic
def small_integers(typing, address, count):
    """The int32 array of `count` elements at an address."""
    return _array(types.int32, typing, address, count)


def _array(element: Any, typing: Any, address: Any, count: Any) -> Any:
    array = types.Array(element, 1, "C")

    def emit(context, builder, signature, args):
        size = context.get_abi_sizeof(context.get_data_type(element))
        made = context.make_array(array)(context, builder)
        context.populate_array(
            made,
            data=builder.inttoptr(args[0], context.get_data_type(element).as_pointer()),
            shape=cgutils.pack_array(builder, [args[1]]),
            strides=cgutils.pack_array(builder, [_I64(size)]),
            itemsize=_I64(size),
            meminfo=None,
        )
        return made._getvalue()

    return array(types.int64, types.int64), emit


@intrinsic
def fetch_add(typing, address, amount):
    """Add to the int64 at an address, atomically; what it was before."""

    def emit(context, builder, signature, args):
        place = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), emit


@intrinsic
def exchange(typing, address, before, after):
    """Replace the int64 at an address if it still is `before`; whether it was."""

    def emit(context, builder, signature, args):
        place = builder.inttoptr(args[0], _I64.as_pointer())
        result = builder.cmpxchg(place, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), emit


@intrinsic
def load_acquire(typing, address):
    """The int64 at an address, and all that was written before it was."""

    def emit(context, builder, signature, args):
        place = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.load_atomic(place, "seq_cst", 8)

    return types.int64(types.int64), emit


@intrinsic
def store_release(typing, address, value):
    """Write the int64 at an address after all that was written before."""

    def emit(context, builder, signature, args):
        place = builder.inttoptr(args[0], _I64.as_pointer())
        builder.store_atomic(args[1], place, "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def pause(typing):
    """Tell the processor that this loop waits."""

    def emit(context, builder, signature, args):
        if llvm.get_process_triple().startswith("x86_64"):
            signature = ir.FunctionType(ir.VoidType(), [])
            builder.call(
                cgutils.get_or_insert_function(builder.module, signature, "llvm.x86.sse2.pause"), []
            )
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def call(typing, address, op, rows, given, scratch, start, stop):
    """Call the operator whose machine code lies at `address`."""

    def emit(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 6)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), emit
