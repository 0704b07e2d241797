"""LLVM code for vectors of float32, said once: loads, stores, multiply-add, sums, loops."""

from collections.abc import Callable

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils

_HOST = llvm.get_host_cpu_features()
# float32 values in a register; two of them make a panel.
LANES = 16 if _HOST.get("avx512f") else 8 if _HOST.get("avx2") else 4
PANEL = 2 * LANES
# Rows that one pass over a panel computes: two accumulators each, beside two weight registers and
# one for the input, of AVX2's 16 registers or AVX-512's 32.
ROWS_AT_ONCE = 8 if LANES == 16 else 6
# Of the values of attention: vectors of a row, and rows of weights that are summed in one pass.
SUM_VECTORS = 4 if LANES == 16 else 2
SUMS_AT_ONCE = 6
_FUSED = bool(_HOST.get("fma") or _HOST.get("neon") or _HOST.get("avx512f"))
# Whether the processor multiplies pairs of bfloat16 as they lie in memory.
MULTIPLIES_PAIRS = bool(_HOST.get("avx512bf16")) and LANES == 16
# Whether it multiplies tiles of them (AMX); a system may still deny that.
MULTIPLIES_TILES = bool(_HOST.get("amx-tile") and _HOST.get("amx-bf16")) and LANES == 16

F32, I16, I32, I64 = ir.FloatType(), ir.IntType(16), ir.IntType(32), ir.IntType(64)


class _BFloat(ir.types.Type):
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


class Emitter:
    """An IR builder with the few shapes of code that the loops below share."""

    def __init__(self, builder: ir.IRBuilder, lanes: int = LANES) -> None:
        self.b = builder
        self.lanes = lanes
        self.vector = ir.VectorType(F32, lanes)

    def pointer(self, address: ir.Value, element: ir.Type) -> ir.Value:
        """A number as the pointer to elements of a type."""
        return self.b.inttoptr(address, element.as_pointer())

    def zero(self) -> ir.Constant:
        """A vector of zeros."""
        return ir.Constant(self.vector, [0.0] * self.lanes)

    def splat(self, scalar: ir.Value) -> ir.Value:
        """A vector of one value."""
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        one = self.b.insert_element(undefined, scalar, I32(0))
        mask = ir.Constant(ir.VectorType(I32, self.lanes), [0] * self.lanes)
        return self.b.shuffle_vector(one, undefined, mask)

    def load(self, base: ir.Value, index: ir.Value, bf16: bool) -> ir.Value:
        """`lanes` elements from `base`[index] on, as float32."""
        at = self.b.gep(base, [index])
        if not bf16:
            loaded = self.b.load(self.b.bitcast(at, self.vector.as_pointer()))
            loaded.align = 4
            return loaded
        wide = ir.VectorType(I32, self.lanes)
        half = self.b.load(self.b.bitcast(at, ir.VectorType(I16, self.lanes).as_pointer()))
        half.align = 2
        shift = ir.Constant(wide, [16] * self.lanes)
        return self.b.bitcast(self.b.shl(self.b.zext(half, wide), shift), self.vector)

    def load_pairs(self, base: ir.Value, index: ir.Value) -> ir.Value:
        """`lanes` pairs of bfloat16 from `base`[index] on, which points to pairs."""
        pairs = ir.VectorType(I32, self.lanes)
        at = self.b.bitcast(self.b.gep(base, [index]), pairs.as_pointer())
        loaded = self.b.load(at)
        loaded.align = 4
        return loaded

    def load_pair(self, base: ir.Value, index: ir.Value) -> ir.Value:
        """The pair of bfloat16 at `base`[index], which points to bfloat16."""
        at = self.b.bitcast(self.b.gep(base, [index]), I32.as_pointer())
        loaded = self.b.load(at)
        loaded.align = 2
        return loaded

    def first_and_second(self, pairs: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The first ones of pairs of bfloat16 and the second ones, as float32."""
        shift = ir.Constant(pairs.type, [16] * self.lanes)
        upper = ir.Constant(pairs.type, [-(1 << 16)] * self.lanes)
        return (
            self.b.bitcast(self.b.shl(pairs, shift), self.vector),
            self.b.bitcast(self.b.and_(pairs, upper), self.vector),
        )

    def multiply_add_pairs(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """z + the products of pairs of bfloat16, by the processor's own instruction."""
        halves = ir.VectorType(_BFloat(), 2 * self.lanes)
        signature = ir.FunctionType(self.vector, [self.vector, halves, halves])
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * self.lanes}"
        function = cgutils.get_or_insert_function(self.b.module, signature, name)
        return self.b.call(function, [z, self.b.bitcast(x, halves), self.b.bitcast(y, halves)])

    def store(self, value: ir.Value, base: ir.Value, index: ir.Value) -> None:
        """Write a vector to `base`[index] and on."""
        at = self.b.gep(base, [index])
        self.b.store(value, self.b.bitcast(at, value.type.as_pointer())).align = 4

    def multiply_add(self, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
        """x * y + z, rounded once where the processor can."""
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
            kind = ir.VectorType(I32, width)
            low = ir.Constant(kind, list(range(width)))
            high = ir.Constant(kind, list(range(width, 2 * width)))
            value = self.b.fadd(
                self.b.shuffle_vector(value, undefined, low),
                self.b.shuffle_vector(value, undefined, high),
            )
        return self.b.extract_element(value, I32(0))

    def sums(self, values: list[ir.Value]) -> ir.Value:
        """The sum of each of `lanes` vectors, side by side, each as `sum` adds it up."""
        width = self.lanes
        while width > 1:
            half = width // 2
            starts = range(0, 2 * self.lanes, width)
            kind = ir.VectorType(I32, self.lanes)
            low = ir.Constant(kind, [start + i for start in starts for i in range(half)])
            high = ir.Constant(kind, [start + half + i for start in starts for i in range(half)])
            values = [
                self.b.fadd(
                    self.b.shuffle_vector(values[i], values[i + 1], low),
                    self.b.shuffle_vector(values[i], values[i + 1], high),
                )
                for i in range(0, len(values), 2)
            ]
            width = half
        return values[0]

    def transposed(self, rows: list[ir.Value]) -> list[ir.Value]:
        """The columns of `lanes` vectors, by swapping ever smaller blocks across the diagonal."""
        kind = ir.VectorType(I32, self.lanes)
        lanes = range(self.lanes)
        size = self.lanes // 2
        while size:
            low = ir.Constant(kind, [i + (self.lanes - size if i & size else 0) for i in lanes])
            high = ir.Constant(kind, [i + (self.lanes if i & size else size) for i in lanes])
            rows = [
                self.b.shuffle_vector(rows[i - size], rows[i], high)
                if i & size
                else self.b.shuffle_vector(rows[i], rows[i + size], low)
                for i in lanes
            ]
            size //= 2
        return rows

    def store_rounded(self, value: ir.Value, base: ir.Value, index: ir.Value) -> None:
        """`lanes` float32 as bfloat16, to nearest, ties to even; NaN stays NaN."""
        wide, half = ir.VectorType(I32, self.lanes), ir.VectorType(I16, self.lanes)

        def constant(number: int) -> ir.Constant:
            return ir.Constant(wide, [number] * self.lanes)

        bits = self.b.bitcast(value, wide)
        odd = self.b.and_(self.b.lshr(bits, constant(16)), constant(1))
        near = self.b.add(self.b.add(bits, constant(0x7FFF)), odd)
        is_nan = self.b.fcmp_unordered("uno", value, value)
        near = self.b.select(is_nan, constant(0x7FC00000), near)
        short = self.b.trunc(self.b.lshr(near, constant(16)), half)
        at = self.b.gep(base, [index])
        self.b.store(short, self.b.bitcast(at, half.as_pointer())).align = 2

    def choose(self, number: ir.Value, most: int, emit: Callable[[int], None]) -> None:
        """`emit(n)` for the one n of 1..most that `number` is."""
        blocks = [self.b.append_basic_block("case") for _ in range(most)]
        after = self.b.append_basic_block("after")
        choice = self.b.switch(number, blocks[0])
        for n, block in enumerate(blocks, 1):
            choice.add_case(I64(n), block)
            self.b.position_at_end(block)
            emit(n)
            self.b.branch(after)
        self.b.position_at_end(after)

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
        i = self.b.phi(I64)
        i.add_incoming(I64(0), before)
        values = [self.b.phi(start.type) for start in starts]
        for value, start in zip(values, starts, strict=True):
            value.add_incoming(start, before)
        self.b.cbranch(self.b.icmp_signed("<", i, count), inside, after)
        self.b.position_at_end(inside)
        results = body(i, values)
        end = self.b.block
        i.add_incoming(self.b.add(i, I64(1)), end)
        for value, result in zip(values, results, strict=True):
            value.add_incoming(result, end)
        self.b.branch(head)
        self.b.position_at_end(after)
        return values
