"""The best few of many scores, and the logarithm of the sum of their exponentials."""

import numpy as np

from fastmtp_sglang.serving.cpu.native.compiled import helper, operator
from fastmtp_sglang.serving.cpu.native.exponential import exp
from fastmtp_sglang.serving.cpu.native.machine import floats, integers
from fastmtp_sglang.serving.cpu.native.passes import FIELDS

_LOWEST = np.float32(-np.inf)
_ZERO = np.float32(0.0)


@helper
def _log_sum(scores, width, largest):
    """log of the sum of exp(scores), four sums side by side."""
    if largest == np.inf:
        return largest
    a = b = c = d = _ZERO
    fours = width // 4
    for i in range(fours):
        a += _weight(scores[4 * i], largest)
        b += _weight(scores[4 * i + 1], largest)
        c += _weight(scores[4 * i + 2], largest)
        d += _weight(scores[4 * i + 3], largest)
    for i in range(4 * fours, width):
        a += _weight(scores[i], largest)
    return largest + np.log((a + b) + (c + d))


@helper
def _weight(score, largest):
    return exp(score - largest) if score > _LOWEST else _ZERO


@operator
def best(op, rows, given, scratch, start, stop):
    """The k largest of each row and where they are, the first of equals first; NaN counts as -inf.

    Fields: scores (float32), their number in a row, k, values (float32 [rows, k]), places (int64
    [rows, k]), log-sum-exp (float32 [rows]) or 0.
    """
    op = integers(op, FIELDS)
    width, k = op[2], op[3]
    for row in range(start, stop):
        scores = floats(op[1] + row * width * 4, width)
        values, places = floats(op[4] + row * k * 4, k), integers(op[5] + row * k * 8, k)
        for i in range(k):
            values[i], places[i] = _LOWEST, 0
        found = 0
        least = _LOWEST
        for i in range(width):
            value = scores[i]
            # Not "value <= least": NaN must not pass.
            if not (value > least or (found < k and value == value)):
                continue
            at = min(found, k - 1)
            while at > 0 and value > values[at - 1]:
                values[at], places[at] = values[at - 1], places[at - 1]
                at -= 1
            values[at], places[at] = value, i
            found = min(found + 1, k)
            if found == k:
                least = values[k - 1]
        if op[6]:
            floats(op[6] + row * 4, 1)[0] = _log_sum(scores, width, values[0])
