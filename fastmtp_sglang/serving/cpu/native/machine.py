"""Memory and threads as numba does not know them: arrays at addresses, atomics, calls."""

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I64 = ir.IntType(64)


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
def prefetch(typing, address):
    """Let the cache fetch the line at an address, which will be read soon."""

    def emit(context, builder, signature, args):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [byte, *[number] * 3])
        fetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
        # To be read, into the second level, data.
        builder.call(fetch, [builder.inttoptr(args[0], byte), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def call(typing, address, op, rows, given, scratch, start, stop):
    """Call the operator whose machine code lies at `address`."""

    def emit(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 6)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), emit
