"""Drawing a place of each row of probabilities: by a coin, or by a seed.

By a seed it is SGLang's function: Gumbel-max over a MurmurHash3 of seed, position and column, where
a column is a place of the row, or a rank among what filters keep. The largest log p - log(-log u)
is the largest p / -log u, and -log u >= 1 - u: so the logarithms of few columns are needed.
"""

import numpy as np

from fastmtp_sglang.serving.cpu.native.compiled import helper, operator
from fastmtp_sglang.serving.cpu.native.filtering import BLOCK, count_blocks, edge_of
from fastmtp_sglang.serving.cpu.native.machine import floats, integers, small_integers
from fastmtp_sglang.serving.cpu.native.passes import FIELDS

_BLOCK = 512
_u = np.uint32
_FIRST, _SECOND, _ADDED = _u(0xCC9E2D51), _u(0x1B873593), _u(0xE6546B64)
_THIRD, _FOURTH, _FIVE, _BYTES = _u(0x85EBCA6B), _u(0xC2B2AE35), _u(5), _u(16)
_LARGEST = 4294967295.0
# A hash of the largest value would make log u zero, and its column win always.
_SMALLEST = 2.0**-32
# More than what rounding makes of the bound.
_ALMOST = 1.0 - 1e-6


@helper
def _sum(numbers, start, stop):
    """The sum in float64, four sums side by side."""
    a = b = c = d = 0.0
    fours = (stop - start) // 4
    for i in range(start, start + 4 * fours, 4):
        a += numbers[i]
        b += numbers[i + 1]
        c += numbers[i + 2]
        d += numbers[i + 3]
    for i in range(start + 4 * fours, stop):
        a += numbers[i]
    return (a + b) + (c + d)


@operator
def draw(op, rows, given, scratch, start, stop):
    """Invert the cumulative sum of each row; never a place of probability 0.

    Fields: probabilities (float32 [rows, width]; their sum need not be 1), width, coins (float32
    [rows], in [0, 1)), out (int64 [rows]).
    """
    op = integers(op, FIELDS)
    width = op[2]
    blocks = -(-width // _BLOCK)
    sums = np.empty(blocks, np.float64)
    for r in range(start, stop):
        numbers = floats(op[1] + r * width * 4, width)
        total = 0.0
        for block in range(blocks):
            sums[block] = _sum(numbers, block * _BLOCK, min((block + 1) * _BLOCK, width))
            total += sums[block]
        point = np.float64(floats(op[3] + r * 4, 1)[0]) * total
        block, before, last = 0, 0.0, 0
        while block < blocks - 1 and before + sums[block] <= point:
            before += sums[block]
            block += 1
        # Sums of single entries may round otherwise than that of their block.
        for i in range(block * _BLOCK, width):
            if numbers[i] > 0.0:
                last = i
                before += numbers[i]
                if before > point:
                    break
        integers(op[4] + r * 8, 1)[0] = last


@operator
def draw_kept(op, rows, given, scratch, start, stop):
    """Draw from what the filters keep of each row, as `draw` does of what `filtering.keep` writes.

    Fields: probabilities (float32 [rows, width]), width, and as `filtering.keep` k, p and min-p;
    coins (float32 [rows], in [0, 1)), out (int64 [rows]).
    """
    op = integers(op, FIELDS)
    width = op[2]
    blocks = count_blocks(width)
    tops = np.empty(blocks, np.float32)
    largest_bits = small_integers(tops.ctypes.data, blocks)
    for r in range(start, stop):
        row = op[1] + r * width * 4
        smallest, kept, _, total = edge_of(op, r, row, width, tops.ctypes.data)
        numbers, bits = floats(row, width), small_integers(row, width)
        point = np.float64(floats(op[6] + r * 4, 1)[0]) * total
        before, last = 0.0, 0
        for block in range(blocks):
            if largest_bits[block] < smallest:
                continue
            for i in range(block * BLOCK, min((block + 1) * BLOCK, width)):
                if bits[i] < smallest:
                    continue
                if bits[i] == smallest:
                    kept -= 1
                    if kept < 0:
                        continue
                last = i
                before += numbers[i]
                if before > point:
                    break
            if before > point:
                break
        integers(op[7] + r * 8, 1)[0] = last


@helper
def _rotated(x, left):
    return _u(_u(x << _u(left)) | _u(x >> _u(32 - left)))


@helper
def _mix(state, block):
    block = _u(_rotated(_u(block * _FIRST), 15) * _SECOND)
    return _u(_u(_rotated(_u(state ^ block), 13) * _FIVE) + _ADDED)


@helper
def _hash(state, column):
    """MurmurHash3 (32 bits) of what made `state`, and a column."""
    x = _u(_mix(state, _u(column)) ^ _BYTES)
    x = _u(_u(x ^ _u(x >> _u(16))) * _THIRD)
    x = _u(_u(x ^ _u(x >> _u(13))) * _FOURTH)
    return _u(x ^ _u(x >> _u(16)))


@helper
def _best(numbers, count, seed, position):
    """The column of the largest log p + Gumbel noise, the first of equals.

    log p is of float32, as SGLang's, unless `count` numbers are in float64.
    """
    state = _mix(_u(0), _u(seed & 0xFFFFFFFF))
    state = _mix(state, _u((seed >> 32) & 0xFFFFFFFF))
    state = _mix(state, _u(position & 0xFFFFFFFF))
    hashes = np.empty(_BLOCK, np.uint32)
    best, ratio, column = -np.inf, 0.0, 0
    for start in range(0, count, _BLOCK):
        size = min(_BLOCK, count - start)
        for i in range(size):
            hashes[i] = _hash(state, start + i)
        for i in range(size):
            p, left = np.float64(numbers[start + i]), _LARGEST - hashes[i]
            if p * _LARGEST < ratio * left or p == 0.0:
                continue
            noise = -np.log(max(-np.log(hashes[i] / _LARGEST), _SMALLEST))
            score = np.log(numbers[start + i]) + noise
            if score > best:
                best, column = score, start + i
                ratio = _ALMOST * np.exp(best)
    return column


@helper
def _sift(keys, place, count):
    """Let the key of a place sink in a heap of `count` keys, the largest first."""
    key = keys[place]
    while 2 * place + 1 < count:
        child = 2 * place + 1
        if child + 1 < count and keys[child + 1] > keys[child]:
            child += 1
        if keys[child] <= key:
            break
        keys[place] = keys[child]
        place = child
    keys[place] = key


@helper
def _sort(keys, count):
    """Sort keys[:count], by a heap: `np.sort` takes longer to compile than all else here."""
    for place in range(count // 2 - 1, -1, -1):
        _sift(keys, place, count)
    for last in range(count - 1, 0, -1):
        key = keys[last]
        keys[last] = keys[0]
        keys[0] = key
        _sift(keys, 0, last)


@helper
def _kept(op, r, row, width):
    """Places that are kept of row r, those of the largest first, and how many."""
    tops = np.empty(count_blocks(width), np.float32)
    smallest, kept, _, _ = edge_of(op, r, row, width, tops.ctypes.data)
    bits = small_integers(row, width)
    keys = np.empty(width, np.int64)
    count = 0
    for i in range(width):
        number = np.int64(bits[i])
        if number < smallest:
            continue
        if number == smallest:
            kept -= 1
            if kept < 0:
                continue
        # Ascending: the larger numbers first, equal ones by their places.
        keys[count] = (np.int64(0x7FFFFFFF) - number) << 32 | i
        count += 1
    _sort(keys, count)
    for i in range(count):
        keys[i] &= 0xFFFFFFFF
    return keys, count


@operator
def draw_seeded(op, rows, given, scratch, start, stop):
    """Draw by seeds.

    Fields: probabilities (float32 [rows, width]), width, and as `filtering.keep` k, p and min-p;
    seeds (int64 [rows]), positions (int64 [rows]), out (int64 [rows]), whether rows are filtered:
    columns are then ranks, of equal probabilities in the order of their places.
    """
    op = integers(op, FIELDS)
    width = op[2]
    for r in range(start, stop):
        row = op[1] + r * width * 4
        seed, position = integers(op[6] + r * 8, 1)[0], integers(op[7] + r * 8, 1)[0]
        out = integers(op[8] + r * 8, 1)
        numbers = floats(row, width)
        if not op[9]:
            out[0] = _best(numbers, width, seed, position)
            continue
        order, count = _kept(op, r, row, width)
        ranked = np.empty(count, np.float64)
        for i in range(count):
            ranked[i] = numbers[order[i]]
        out[0] = order[_best(ranked, count, seed, position)]
