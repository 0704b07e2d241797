"""Attention over the paged cache, read where it lies.

Neighbouring rows of one request share its keys: these are turned into the panels of a product, and
each value is read once for all rows and heads of a group. A row's bits depend on its own keys alone
all the same, wherever these lie and whatever is computed beside it: a score is one chain over the
key's elements, the softmax is that of the row's own keys in their order, and the sum of values runs
in that order too; what only others see has the weight 0 (and must be finite).
"""

import numpy as np

from fastmtp_sglang.serving.cpu.native import vectors
from fastmtp_sglang.serving.cpu.native.compiled import helper, operator
from fastmtp_sglang.serving.cpu.native.emitter import (
    LANES,
    MULTIPLIES_PAIRS,
    PANEL,
    SUM_VECTORS,
    SUMS_AT_ONCE,
)
from fastmtp_sglang.serving.cpu.native.exponential import exp
from fastmtp_sglang.serving.cpu.native.machine import floats, integers, prefetch, small_integers
from fastmtp_sglang.serving.cpu.native.passes import (
    FIELDS,
    PASS_FIELDS,
    SCRATCH_BYTES,
    SEEN,
    VISIBLE,
)
from fastmtp_sglang.serving.cpu.native.product import multiply
from fastmtp_sglang.serving.cpu.native.vectors import float_of_bits, largest, widen_row, write_row

_pairs = vectors.key_panel(True, True)
_floats, _halves = vectors.key_panel(False, False), vectors.key_panel(False, True)
_wide, _single, _one = (
    vectors.weighted_rows(*shape, False) for shape in ((SUM_VECTORS, LANES), (1, LANES), (1, 1))
)
_wide_half, _single_half, _one_half = (
    vectors.weighted_rows(*shape, True) for shape in ((SUM_VECTORS, LANES), (1, LANES), (1, 1))
)

# Queries (rows and heads) that share keys, where the heads of one row are not more.
_QUERIES = 24
_BITS = 64
# Bytes of a cache line, and of how many keys the lines are on their way while others are read.
_LINE, _AHEAD = 64, 2 * PANEL
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


def scratch_bytes(longest: int, heads: int, key_heads: int, size: int, value_size: int) -> int:
    """Scratch memory of a worker for rows that see up to `longest` keys."""
    queries = max(_QUERIES, heads // key_heads)
    keys = longest + _BITS + 2 * PANEL
    fixed = queries * (size + value_size) + PANEL * size + 2 * _BITS
    return 4 * (fixed + keys * (queries + 2)) + 64


@helper
def _weighted(weights, stride, number, slots, n, base, step, out, size, bf16):
    """out[q, :size] = sum of weights[q, t] * row of slots[t], some registers at a time."""
    done = 0
    while done < size:
        at = base + done * (2 if bf16 else 4)
        to = out + done * 4
        if size - done >= SUM_VECTORS * LANES:
            if bf16:
                _wide_half(number, weights, stride, slots, n, at, step, to, size)
            else:
                _wide(number, weights, stride, slots, n, at, step, to, size)
            done += SUM_VECTORS * LANES
        elif size - done >= LANES:
            if bf16:
                _single_half(number, weights, stride, slots, n, at, step, to, size)
            else:
                _single(number, weights, stride, slots, n, at, step, to, size)
            done += LANES
        else:
            if bf16:
                _one_half(number, weights, stride, slots, n, at, step, to, size)
            else:
                _one(number, weights, stride, slots, n, at, step, to, size)
            done += 1


@helper
def _fetch(slots, n, base, step, size):
    """Let the cache fetch rows of `size` bytes at n slots, which may lie far apart."""
    for i in range(n):
        row = base + slots[i] * step
        for line in range(0, size, _LINE):
            prefetch(row + line)


@helper
def _ones(bits):
    """How many bits are set."""
    count = 0
    while bits:
        bits &= bits - 1
        count += 1
    return count


@helper
def _start(prefix, bits, window):
    """The first position that a row sees: a window of w shows w positions behind its own."""
    return max(0, prefix + _ones(bits) - 1 - window) if window >= 0 else 0


@helper
def _list_slots(seen, rows, window, listed):
    """Fill in the cache slots that some of the rows see, in the order of their positions.

    Returns the first position, the end of the leading ones, the bits of those behind, and the
    number of slots.
    """
    first, end = seen[1], 0
    for row in range(rows):
        prefix = seen[row * SEEN + 1]
        first = min(first, prefix, _start(prefix, seen[row * SEEN + 2], window))
        end = max(end, prefix)
    behind = 0
    for row in range(rows):
        distance = end - seen[row * SEEN + 1]
        if distance < _BITS:
            bits = seen[row * SEEN + 2] >> distance
            # The sign is a bit like the others.
            behind |= bits & ((1 << (_BITS - distance)) - 1) if distance else bits
    slots = small_integers(seen[0], end + _BITS)
    n = 0
    for position in range(first, end):
        listed[n] = slots[position]
        n += 1
    for bit in range(_BITS):
        if (behind >> bit) & 1:
            listed[n] = slots[end + bit]
            n += 1
    return first, end, behind, n


@helper
def _total(values, n):
    """The sum of values[:n], in an order that n alone decides."""
    a = b = c = d = _ZERO
    fours = n // 4
    for i in range(fours):
        a += values[4 * i]
        b += values[4 * i + 1]
        c += values[4 * i + 2]
        d += values[4 * i + 3]
    for i in range(4 * fours, n):
        a += values[i]
    return (a + b) + (c + d)


@helper
def _softmax(scores_at, prefix, bits, window, first, end, behind, n, scale, places, kept):
    """Turn the scores of n listed keys into a row's weights, 0 where it sees none.

    Returns what the sum of its values must be multiplied by.
    """
    start = _start(prefix, bits, window)
    hidden = min(start, prefix) - first
    scores = floats(scores_at, n)
    own = prefix - first  # the end of the row's own keys, which are moved together
    skip = max(0, start - prefix)
    moved = 0
    for bit in range(_BITS):
        if (bits >> bit) & 1:
            if skip > 0:
                skip -= 1
                continue
            position = prefix + bit
            place = position - first
            if position >= end:
                place = end - first + _ones(behind & ((1 << (position - end)) - 1))
            places[moved] = place
            scores[own] = scores[place]
            own += 1
            moved += 1
    count = own - hidden
    best = largest(scores_at + hidden * 4, count)
    mine = floats(scores_at + hidden * 4, count)
    for t in range(count):
        mine[t] = exp((mine[t] - best) * scale)
    total = _total(mine, count)
    for i in range(hidden):
        scores[i] = _ZERO
    leading = prefix - first
    for i in range(moved):
        kept[i] = scores[leading + i]
    for i in range(leading, n):
        scores[i] = _ZERO
    for i in range(moved):
        scores[places[i]] = kept[i]
    return _ONE / total


@helper
def _copy(source, target, size):
    """Copy bfloat16, an even number of them."""
    given, copied = small_integers(source, size // 2), small_integers(target, size // 2)
    for i in range(size // 2):
        copied[i] = given[i]


@operator
def attend(op, rows, given, scratch, start, stop):
    """Attention of each row and head over the keys that the row sees.

    Fields: query, its stride, out, its stride, key cache, value cache, heads, key heads, head size,
    value size, the bits of the scale, window or -1, bf16, bf16 of the cache. A part is a key head
    of a row; the first of the rows that share keys does the work of all.
    """
    op, given = integers(op, FIELDS), integers(given, PASS_FIELDS)
    heads, key_heads, size, value_size = op[7], op[8], op[9], op[10]
    scale, window, bf16, half_cache = float_of_bits(op[11]), op[12], op[13], op[14]
    width, cache_width = 2 if bf16 else 4, 2 if half_cache else 4
    group = heads // key_heads
    together = max(1, _QUERIES // group)
    paired = MULTIPLIES_PAIRS and bf16 and half_cache and size % 2 == 0
    most = max(_QUERIES, group)
    results_at = scratch + most * size * 4
    tile = results_at + most * value_size * 4
    kept_at = tile + PANEL * size * 4
    places_at = kept_at + _BITS * 4
    slots_at = places_at + _BITS * 8
    slots_at += -slots_at % 8
    kept, places = floats(kept_at, _BITS), integers(places_at, _BITS)
    # Where the queries lie, which nobody reads any more by then.
    shares = floats(scratch, most)
    slots = integers(slots_at, (scratch + given[SCRATCH_BYTES] - slots_at) // 8)
    table = integers(given[VISIBLE], rows * SEEN)
    for unit in range(start, stop):
        row, key_head = unit // key_heads, unit % key_heads
        address = table[row * SEEN]
        if row % together and table[(row - 1) * SEEN] == address:
            continue
        count = 1
        while (
            row + count < rows
            and (row + count) % together
            and table[(row + count) * SEEN] == address
        ):
            count += 1
        seen = table[row * SEEN : (row + count) * SEEN]
        first, end, behind, n = _list_slots(seen, count, window, slots)
        stride = (n + PANEL - 1) // PANEL * PANEL
        for i in range(n, stride):
            slots[i] = slots[n - 1]
        scores_at = slots_at + stride * 8
        queries = count * group
        for query in range(queries):
            head = key_head * group + query % group
            x = op[1] + ((row + query // group) * op[2] + head * size) * width
            if paired:
                _copy(x, scratch + query * size * 2, size)
            elif bf16:
                widen_row(x, scratch + query * size * 4, size)
            else:
                write_row(x, scratch + query * size * 4, size, False)
        keys = op[5] + key_head * size * cache_width
        step = key_heads * size * cache_width
        values = op[6] + key_head * value_size * cache_width
        value_step = key_heads * value_size * cache_width
        _fetch(slots, min(n, _AHEAD), keys, step, size * cache_width)
        for block in range(0, stride, PANEL):
            ahead = block + _AHEAD
            _fetch(slots[ahead:], min(n - ahead, PANEL), keys, step, size * cache_width)
            many = min(n - block, PANEL)
            _fetch(slots[block:], many, values, value_step, value_size * cache_width)
            if paired:
                _pairs(slots_at + block * 8, keys, step, size, tile)
            elif half_cache:
                _halves(slots_at + block * 8, keys, step, size, tile)
            else:
                _floats(slots_at + block * 8, keys, step, size, tile)
            to = scores_at + block * 4
            multiply(scratch, size, paired, queries, tile, size, paired, to, stride)
        for query in range(queries):
            at, i = scores_at + query * stride * 4, query // group * SEEN
            shares[query] = _softmax(
                at, seen[i + 1], seen[i + 2], window, first, end, behind, n, scale, places, kept
            )
        for query in range(0, queries, SUMS_AT_ONCE):
            at, to = scores_at + query * stride * 4, results_at + query * value_size * 4
            number = min(SUMS_AT_ONCE, queries - query)
            _weighted(
                at, stride, number, slots_at, n, values, value_step, to, value_size, half_cache
            )
        for query in range(queries):
            at = results_at + query * value_size * 4
            result = floats(at, value_size)
            for i in range(value_size):
                result[i] *= shares[query]
            head = key_head * group + query % group
            out = op[3] + ((row + query // group) * op[4] + head * value_size) * width
            write_row(at, out, value_size, bf16)
