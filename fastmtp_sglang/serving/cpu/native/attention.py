"""Attention over the paged cache, read where it lies.

Each row and head is computed by itself: scores in the order of its keys, their softmax, and the
weighted sum of values in the same order. So a row's bits depend on its own keys alone, wherever
these lie and whatever is computed beside it.
"""

import numpy as np
from numba import njit

from fastmtp_sglang.serving.cpu.native import vectors
from fastmtp_sglang.serving.cpu.native.compiled import operator
from fastmtp_sglang.serving.cpu.native.emitter import LANES
from fastmtp_sglang.serving.cpu.native.exponential import exp
from fastmtp_sglang.serving.cpu.native.machine import floats, integers, small_integers
from fastmtp_sglang.serving.cpu.native.passes import (
    FIELDS,
    PASS_FIELDS,
    SCRATCH_BYTES,
    SEEN,
    VISIBLE,
)
from fastmtp_sglang.serving.cpu.native.vectors import float_of_bits, round_row, widen_row

_scores, _half_scores = vectors.key_scores(False), vectors.key_scores(True)
_w8, _w4, _w2, _w1 = (vectors.weighted_rows(n, LANES, False) for n in (8, 4, 2, 1))
_v8, _v4, _v2, _v1 = (vectors.weighted_rows(n, LANES, True) for n in (8, 4, 2, 1))
_w0, _v0 = vectors.weighted_rows(1, 1, False), vectors.weighted_rows(1, 1, True)

# Scratch memory for one key: its score and where it lies; the rest holds a query and a result.
BYTES_A_KEY = 16
_ONE, _ZERO = np.float32(1.0), np.float32(0.0)


@njit(error_model="numpy")
def _weighted(weights, slots, n, base, step, scale, out, size, bf16):
    """out[:size] = scale * sum of weights[t] * row of slots[t], some registers at a time."""
    done = 0
    while done < size:
        left = size - done
        at = base + done * (2 if bf16 else 4)
        to = out + done * 4
        if left >= 8 * LANES:
            if bf16:
                _v8(weights, slots, n, at, step, scale, to)
            else:
                _w8(weights, slots, n, at, step, scale, to)
            done += 8 * LANES
        elif left >= 4 * LANES:
            if bf16:
                _v4(weights, slots, n, at, step, scale, to)
            else:
                _w4(weights, slots, n, at, step, scale, to)
            done += 4 * LANES
        elif left >= 2 * LANES:
            if bf16:
                _v2(weights, slots, n, at, step, scale, to)
            else:
                _w2(weights, slots, n, at, step, scale, to)
            done += 2 * LANES
        elif left >= LANES:
            if bf16:
                _v1(weights, slots, n, at, step, scale, to)
            else:
                _w1(weights, slots, n, at, step, scale, to)
            done += LANES
        else:
            if bf16:
                _v0(weights, slots, n, at, step, scale, to)
            else:
                _w0(weights, slots, n, at, step, scale, to)
            done += 1


@njit(error_model="numpy")
def _list_slots(seen, window, listed):
    """Fill in the cache slots that a row sees, oldest first; how many there are."""
    prefix, bits = seen[1], seen[2]
    behind = 0
    rest = bits
    while rest:
        rest &= rest - 1
        behind += 1
    total = prefix + behind
    # A window of w shows w positions behind the row's own.
    start = max(0, total - 1 - window) if window >= 0 else 0
    n = 0
    slots = small_integers(seen[0], prefix + 64)
    for position in range(min(start, prefix), prefix):
        listed[n] = slots[position]
        n += 1
    skip = max(0, start - prefix)
    for bit in range(64):
        if (bits >> bit) & 1:
            if skip > 0:
                skip -= 1
            else:
                listed[n] = slots[prefix + bit]
                n += 1
    return n


@njit(error_model="numpy")
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


@operator
def attend(op, rows, given, scratch, start, stop):
    """Attention of each row and head over the keys that the row sees.

    Fields: query, its stride, out, its stride, key cache, value cache, heads, key heads, head size,
    value size, the bits of the scale, window or -1, bf16, bf16 of the cache.
    """
    op, given = integers(op, FIELDS), integers(given, PASS_FIELDS)
    visible, longest = given[VISIBLE], given[SCRATCH_BYTES] // BYTES_A_KEY
    heads, key_heads, size, value_size = op[7], op[8], op[9], op[10]
    scale, window, bf16, half_cache = float_of_bits(op[11]), op[12], op[13], op[14]
    width, cache_width = 2 if bf16 else 4, 2 if half_cache else 4
    group = heads // key_heads
    mixed = scratch + size * 4
    scores_at = mixed + value_size * 4
    scores = floats(scores_at, longest)
    slots_at = scores_at + longest * 4
    slots_at += 8 - slots_at % 8
    slots = integers(slots_at, longest)
    table = integers(visible, rows * SEEN)
    listed, n = -1, 0
    for unit in range(start, stop):
        row, head = unit // heads, unit % heads
        if row != listed:
            n = _list_slots(table[row * SEEN : row * SEEN + SEEN], window, slots)
            listed = row
        key_head = head // group
        x = op[1] + (row * op[2] + head * size) * width
        if bf16:
            widen_row(x, scratch, size)
            x = scratch
        keys = op[5] + key_head * size * cache_width
        step = key_heads * size * cache_width
        if half_cache:
            largest = _half_scores(x, slots_at, n, keys, step, size, scale, scores_at)
        else:
            largest = _scores(x, slots_at, n, keys, step, size, scale, scores_at)
        for t in range(n):
            scores[t] = exp(scores[t] - largest)
        share = _ONE / _total(scores, n)
        values = op[6] + key_head * value_size * cache_width
        step = key_heads * value_size * cache_width
        out = op[3] + (row * op[4] + head * value_size) * width
        to = mixed if bf16 else out
        _weighted(scores_at, slots_at, n, values, step, share, to, value_size, half_cache)
        if bf16:
            round_row(mixed, out, value_size)
