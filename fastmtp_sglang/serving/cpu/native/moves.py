"""Moving what cache slots hold, in all layers at once."""

import numpy as np
from numba import types

from fastmtp_sglang.serving.cpu.native.compiled import compiled
from fastmtp_sglang.serving.cpu.native.machine import halves


@compiled(types.void(*[types.int64[::1]] * 4))
def move(buffers, row_bytes, targets, sources):
    """Copy rows of every buffer, as if all were read before any is written.

    Args:
        buffers: the address of each.
        row_bytes: of a row of each; even numbers.
        targets: slots to write, distinct.
        sources: slots to read, as many; where both are the same nothing is done.
    """
    rows = len(targets)
    for i in range(len(buffers)):
        width = row_bytes[i] // 2
        # Loops, not slices: those take two more seconds to compile.
        kept = np.empty(rows * width, dtype=np.uint16)
        for row in range(rows):
            if targets[row] != sources[row]:
                source = halves(buffers[i] + sources[row] * row_bytes[i], width)
                for column in range(width):
                    kept[row * width + column] = source[column]
        for row in range(rows):
            if targets[row] != sources[row]:
                target = halves(buffers[i] + targets[row] * row_bytes[i], width)
                for column in range(width):
                    target[column] = kept[row * width + column]
