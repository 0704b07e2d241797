"""The largest probabilities of a row, those that its filters keep, found without sorting.

What top-k, top-p and min-p keep are three sets of the largest; the smallest of them is kept. Its
edge is looked for digit by digit in the bits of the numbers, which are in the order of their
values where none is negative: three looks at a row, where a sort of 49,152 entries takes 10 ms.
These looks pass over blocks of which even the largest number cannot be kept, nearly all of them.
"""

import numpy as np

from fastmtp_sglang.serving.cpu.native.compiled import helper, operator
from fastmtp_sglang.serving.cpu.native.machine import floats, integers, small_integers
from fastmtp_sglang.serving.cpu.native.passes import FIELDS
from fastmtp_sglang.serving.cpu.native.vectors import largest

# Three digits of 31 bits: where each begins, and how many values the first one has.
_SHIFTS, _VALUES = (20, 10, 0), 2048
# Numbers that are passed over together.
BLOCK = 256
_ZERO = np.float32(0.0)


@helper
def count_blocks(width):
    """How many blocks a row has."""
    return (width + BLOCK - 1) // BLOCK


@helper
def _digits(row, width, k, limit, lowest, tops):
    """Find the edge of the largest numbers of a row, of those with bits of `lowest` or more.

    Args:
        row: address of float32 [width], none negative.
        width: how many.
        k: at most so many are kept; at least 1.
        limit: the fewest whose sum reaches this, all for infinity.
        lowest: bits, above 0.
        tops: address of the largest number of each block, or 0 to look at all.

    Returns:
        As `edge`.
    """
    numbers, bits = floats(row, width), small_integers(row, width)
    blocks = count_blocks(width)
    largest_bits = small_integers(tops, blocks)
    counts, sums = np.empty(_VALUES, np.int64), np.empty(_VALUES, np.float64)
    count, total = np.int64(0), 0.0
    found, above = np.int64(0), np.int64(31)
    digit = np.int64(0)
    for shift in _SHIFTS:
        values = 1 << (above - shift)
        counts[:values] = 0
        sums[:values] = 0.0
        for block in range(blocks):
            if tops and np.int64(largest_bits[block]) < lowest:
                continue
            for i in range(block * BLOCK, min((block + 1) * BLOCK, width)):
                number = np.int64(bits[i])
                if number >= lowest and number >> above == found:
                    digit = (number >> shift) & (values - 1)
                    counts[digit] += 1
                    sums[digit] += numbers[i]
        digit = values - 1
        while digit >= 0 and count + counts[digit] < k and total + sums[digit] < limit:
            count += counts[digit]
            total += sums[digit]
            digit -= 1
        if digit < 0:
            # There are not more, or sums of them miss the limit by what was rounded.
            return lowest, np.int64(width), np.int64(0), total
        found, above = found << (above - shift) | digit, np.int64(shift)
    value = np.float64(np.int32(found).view(np.float32))
    needed = np.float64(k - count)
    if value > 0.0:
        needed = max(min(needed, np.ceil((limit - total) / value)), 1.0)
    kept = np.int64(min(needed, np.float64(counts[digit])))
    return found, kept, counts[digit], total + kept * value


@helper
def edge(row, width, k, p, least, tops):
    """Find what is kept of a row.

    Args:
        row: address of float32 [width], none negative.
        width: how many.
        k: at most so many are kept; at least 1.
        p: the fewest whose sum reaches this, all where it is 1 or more.
        least: none below this.
        tops: address of the largest number of each block, from `find_tops`.

    Returns:
        The bits of the smallest number that is kept, how many of those equal to it are (the first
        ones), how many equal it, and the sum of what is kept.
    """
    lowest = np.int64(np.float32(least).view(np.int32)) if least > _ZERO else np.int64(1)
    limit, bound = np.float64(p) if p < 1.0 else np.inf, lowest
    blocks = count_blocks(width)
    if k < blocks:
        # At least k numbers are not below the k-th largest of the blocks' largest ones.
        bound = max(bound, _digits(tops, blocks, k, np.inf, np.int64(1), 0)[0])
    if p < 1.0:
        # All that are smaller are less than 1 - p together: without them the rest reaches p.
        bound = max(bound, np.int64(np.float32((1.0 - p) / width).view(np.int32)))
    smallest, kept, equal, total = _digits(row, width, k, limit, bound, tops)
    if equal == 0 and bound > lowest:
        # The row's sum is less than 1.
        smallest, kept, equal, total = _digits(row, width, k, limit, lowest, tops)
    return smallest, kept, equal, total


@helper
def find_tops(row, width, tops):
    """The largest number of each block of a row, float32, and the largest of all."""
    blocks = count_blocks(width)
    numbers, most = floats(tops, blocks), _ZERO
    for block in range(blocks):
        start = block * BLOCK
        numbers[block] = largest(row + start * 4, min(BLOCK, width - start))
        most = max(most, numbers[block])
    return most


@helper
def edge_of(op, r, row, width, tops):
    """`edge` of row r by the filters of an operator; `tops` is written."""
    most = find_tops(row, width, tops)
    k, p = integers(op[3] + r * 8, 1)[0], floats(op[4] + r * 4, 1)[0]
    return edge(row, width, k, p, floats(op[5] + r * 4, 1)[0] * most, tops)


@operator
def keep(op, rows, given, scratch, start, stop):
    """Renormalize what the filters keep of each row; the rest becomes 0.

    Fields: probabilities (float32 [rows, width]), width, k (int64 [rows]), p (float32 [rows]),
    min-p (float32 [rows], 0 for none), out (float32 [rows, width]).
    """
    op = integers(op, FIELDS)
    width = op[2]
    tops = np.empty(count_blocks(width), np.float32)
    for r in range(start, stop):
        row = op[1] + r * width * 4
        smallest, kept, equal, total = edge_of(op, r, row, width, tops.ctypes.data)
        numbers, bits = floats(row, width), small_integers(row, width)
        out = floats(op[6] + r * width * 4, width)
        factor, bound = np.float32(1.0 / total), np.int32(smallest)
        for i in range(width):
            out[i] = numbers[i] * factor if bits[i] >= bound else _ZERO
        if kept < equal:
            for i in range(width):
                if bits[i] == bound:
                    kept -= 1
                    if kept < 0:
                        out[i] = _ZERO
