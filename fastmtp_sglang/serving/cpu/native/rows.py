"""What a block computes row by row: norms, gates, rotary positions, the cache, look-ups."""

import numpy as np

from fastmtp_sglang.serving.cpu.native.compiled import helper, operator
from fastmtp_sglang.serving.cpu.native.exponential import exp
from fastmtp_sglang.serving.cpu.native.machine import floats, halves, integers
from fastmtp_sglang.serving.cpu.native.passes import FIELDS, IDS, PASS_FIELDS, POSITIONS, SLOTS
from fastmtp_sglang.serving.cpu.native.vectors import (
    dot,
    float_of_bits,
    read_row,
    round_row,
    widen_row,
    write_row,
)

# The activations of `gate` by number.
GATES = ("silu", "tanh", "none")

_f = np.float32
_ONE, _HALF, _ZERO, _TWO = _f(1.0), _f(0.5), _f(0.0), _f(2.0)
_TANH_A, _TANH_B = _f(0.7978845608028654), _f(0.044715)
_ROOT_HALF = _f(0.7071067811865476)
# Abramowitz and Stegun 7.1.26: erf within 1.5e-7.
_A1, _A2, _A3 = _f(0.254829592), _f(-0.284496736), _f(1.421413741)
_A4, _A5, _AP = _f(-1.453152027), _f(1.061405429), _f(0.3275911)


@helper
def _silu(x):
    return x / (_ONE + exp(-x))


@helper
def _gelu_by_tanh(x):
    # x * sigmoid(2 z) is x / 2 * (1 + tanh(z)).
    return x / (_ONE + exp(-_TWO * _TANH_A * (x + _TANH_B * x * x * x)))


@helper
def _gelu(x):
    z = abs(x) * _ROOT_HALF
    t = _ONE / (_ONE + _AP * z)
    tail = ((((_A5 * t + _A4) * t + _A3) * t + _A2) * t + _A1) * t * exp(-z * z)
    return _HALF * x * (_TWO - tail) if x >= _ZERO else _HALF * x * tail


@operator
def widen(op, rows, given, scratch, start, stop):
    """out = x, from bfloat16 to float32. Fields: x, its stride, out, width."""
    op = integers(op, FIELDS)
    for row in range(start, stop):
        widen_row(op[1] + row * op[2] * 2, op[3] + row * op[4] * 4, op[4])


@operator
def norm(op, rows, given, scratch, start, stop):
    """residual += x; out = residual / rms(residual) * weight, in each group of a row.

    Fields: x, its stride, out, its stride, residual or 0, its stride, weight (float32), width of a
    group, groups, bf16, the bits of epsilon.
    """
    op = integers(op, FIELDS)
    width, groups, bf16, eps = op[8], op[9], op[10], float_of_bits(op[11])
    weight, sums = floats(op[7], width), floats(scratch, width)
    before_at = scratch + width * 4
    before = floats(before_at, width)
    size = 2 if bf16 else 4
    for row in range(start, stop):
        for group in range(groups):
            at = group * width
            read_row(op[1] + (row * op[2] + at) * size, scratch, width, bf16)
            if op[5]:
                residual = op[5] + (row * op[6] + at) * size
                read_row(residual, before_at, width, bf16)
                for i in range(width):
                    sums[i] += before[i]
                write_row(scratch, residual, width, bf16)
            factor = _ONE / np.sqrt(dot(scratch, scratch, width) / _f(width) + eps)
            for i in range(width):
                sums[i] = sums[i] * factor * weight[i]
            write_row(scratch, op[3] + (row * op[4] + at) * size, width, bf16)


@operator
def gate(op, rows, given, scratch, start, stop):
    """out = activation(first half of x) * second half of x.

    Fields: x, its stride, out, its stride, width of a half, activation (GATES), bf16.
    """
    op = integers(op, FIELDS)
    width, kind, bf16 = op[5], op[6], op[7]
    size = 2 if bf16 else 4
    gates, ups = floats(scratch, width), floats(scratch + width * 4, width)
    for row in range(start, stop):
        x = op[1] + row * op[2] * size
        read_row(x, scratch, width, bf16)
        read_row(x + width * size, scratch + width * 4, width, bf16)
        # One loop for each activation: with the choice inside it would not be vectors.
        if kind == 0:
            for i in range(width):
                gates[i] = _silu(gates[i]) * ups[i]
        elif kind == 1:
            for i in range(width):
                gates[i] = _gelu_by_tanh(gates[i]) * ups[i]
        else:
            for i in range(width):
                gates[i] = _gelu(gates[i]) * ups[i]
        write_row(scratch, op[3] + row * op[4] * size, width, bf16)


@helper
def _turn(x, heads, size, half, angles, scratch, bf16):
    """Rotate the first 2 * half elements of each head, in place."""
    low, high = floats(scratch, half), floats(scratch + half * 4, half)
    for _ in range(heads):
        read_row(x, scratch, 2 * half, bf16)
        for i in range(half):
            a, b = low[i], high[i]
            low[i] = a * angles[i] - b * angles[half + i]
            high[i] = b * angles[i] + a * angles[half + i]
        write_row(scratch, x, 2 * half, bf16)
        x += size * (2 if bf16 else 4)


@operator
def rotate(op, rows, given, scratch, start, stop):
    """Rotary positions of query and key, in place; element i of a head turns with i + half.

    Fields: query, its stride, heads, key, its stride, heads, head size, turned part of it, cosines
    and sines (float32, a row for each position), bf16.
    """
    op, positions = integers(op, FIELDS), integers(given, PASS_FIELDS)[POSITIONS]
    size, part, bf16 = op[7], op[8], op[10]
    width = 2 if bf16 else 4
    places = integers(positions, rows)
    for row in range(start, stop):
        angles = floats(op[9] + places[row] * part * 4, part)
        _turn(op[1] + row * op[2] * width, op[3], size, part // 2, angles, scratch, bf16)
        _turn(op[4] + row * op[5] * width, op[6], size, part // 2, angles, scratch, bf16)


@helper
def _store(source, target, width, bf16, half_cache):
    if bf16 and half_cache:
        bits, to = halves(source, width), halves(target, width)
        for i in range(width):
            to[i] = bits[i]
    elif half_cache:
        round_row(source, target, width)
    else:
        read_row(source, target, width, bf16)


@operator
def keep(op, rows, given, scratch, start, stop):
    """Write keys and values of each row into its cache slot.

    Fields: key, its stride, value, its stride, key cache, value cache, width of a key, of a value,
    bf16, bf16 of the cache.
    """
    op, slots = integers(op, FIELDS), integers(given, PASS_FIELDS)[SLOTS]
    key_width, value_width, bf16, half_cache = op[7], op[8], op[9], op[10]
    width, cache_width = 2 if bf16 else 4, 2 if half_cache else 4
    places = integers(slots, rows)
    for row in range(start, stop):
        slot = places[row]
        key, value = op[1] + row * op[2] * width, op[3] + row * op[4] * width
        _store(key, op[5] + slot * key_width * cache_width, key_width, bf16, half_cache)
        _store(value, op[6] + slot * value_width * cache_width, value_width, bf16, half_cache)


@operator
def join(op, rows, given, scratch, start, stop):
    """out = two rows side by side; zeros for the second at position 0.

    Fields: first, its stride, second, its stride, out, width of each, bf16.
    """
    op, positions = integers(op, FIELDS), integers(given, PASS_FIELDS)[POSITIONS]
    width, bf16 = op[6], op[7]
    size = 2 if bf16 else 4
    places = integers(positions, rows)
    for row in range(start, stop):
        out = op[5] + row * 2 * width * size
        _store(op[1] + row * op[2] * size, out, width, bf16, bf16)
        out += width * size
        if places[row] == 0:
            # Zero has the same bits in both.
            nothing = halves(out, width * size // 2)
            for i in range(width * size // 2):
                nothing[i] = 0
        else:
            _store(op[3] + row * op[4] * size, out, width, bf16, bf16)


@operator
def embed(op, rows, given, scratch, start, stop):
    """The table's row of each token id, multiplied.

    Fields: table, its width, out, its stride, bf16, the bits of the factor.
    """
    op, ids = integers(op, FIELDS), integers(given, PASS_FIELDS)[IDS]
    width, bf16, factor = op[2], op[5], float_of_bits(op[6])
    size = 2 if bf16 else 4
    tokens, values = integers(ids, rows), floats(scratch, width)
    for row in range(start, stop):
        source = op[1] + tokens[row] * width * size
        target = op[3] + row * op[4] * size
        if factor == _ONE:
            _store(source, target, width, bf16, bf16)
        else:
            read_row(source, scratch, width, bf16)
            for i in range(width):
                values[i] *= factor
            write_row(scratch, target, width, bf16)
