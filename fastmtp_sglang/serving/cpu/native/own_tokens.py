"""Tokens of a request's own that its list lacks: kept, scored and joined to the list's best.

As `fastmtp_kernels.own_tokens` and `fastmtp_kernels.torch_draft` define it. A score is the same
chain of multiply-adds as in the product with a list, so that it does not depend on where a token
stands: rows are turned into the panels of that product.
"""

import numpy as np
from numba import types

from fastmtp_sglang.serving.cpu.native import vectors
from fastmtp_sglang.serving.cpu.native.compiled import compiled, helper, operator
from fastmtp_sglang.serving.cpu.native.emitter import PANEL
from fastmtp_sglang.serving.cpu.native.exponential import exp
from fastmtp_sglang.serving.cpu.native.machine import floats, integers, small_integers
from fastmtp_sglang.serving.cpu.native.passes import FIELDS
from fastmtp_sglang.serving.cpu.native.product import multiply

_floats, _halves = vectors.key_panel(False, False), vectors.key_panel(False, True)
_LOWEST, _ZERO = np.float32(-np.inf), np.float32(0.0)
_NO_TOKEN = -1


def scratch_bytes(width: int) -> int:
    """Scratch memory of a worker for head rows of so many elements."""
    return PANEL * (8 + 4 * width)


@operator
def gather(op, rows, given, scratch, start, stop):
    """Scores of each row's own tokens, a part of PANEL of them at a time.

    Fields: x (float32), its stride, head, its stride, width, bf16 of the head, own ids (int32
    [slots, lists, number]), lists, number, request slots (int64), lists of the rows (int64), first
    id of the head and the one behind the last, scores (float32 [rows, number]), ids (int64 [rows,
    number]); -1 where there is none, at score -inf.
    """
    op = integers(op, FIELDS)
    width, bf16, lists, number = op[5], op[6], op[8], op[9]
    slots, used = integers(op[10], rows), integers(op[11], rows)
    places, panel = integers(scratch, PANEL), scratch + PANEL * 8
    parts = number // PANEL
    for part in range(start, stop):
        row, first = part // parts, part % parts * PANEL
        scores = floats(op[14] + (row * number + first) * 4, PANEL)
        ids = integers(op[15] + (row * number + first) * 8, PANEL)
        found = 0
        listed = 0 <= used[row] < lists
        entry = (slots[row] * lists + used[row]) * number + first if listed else 0
        entries = small_integers(op[7] + entry * 4, PANEL)
        for i in range(PANEL):
            held = listed and entries[i] >= 0 and op[12] <= entries[i] < op[13]
            ids[i] = entries[i] if held else _NO_TOKEN
            places[i] = entries[i] - op[12] if held else 0
            scores[i] = _LOWEST
            found += held
        if not found:
            continue
        if bf16:
            _halves(scratch, op[3], op[4] * 2, width, panel)
        else:
            _floats(scratch, op[3], op[4] * 4, width, panel)
        to = op[14] + (row * number + first) * 4
        multiply(op[1] + row * op[2] * 4, op[2], 0, 1, panel, width, 0, to, PANEL)
        for i in range(PANEL):
            if ids[i] < 0:
                scores[i] = _LOWEST


@operator
def join(op, rows, given, scratch, start, stop):
    """Put own tokens among the best of a list, in place.

    Fields: values (float32 [rows, k]), ids (int64 [rows, k]), k, log-sum-exp (float32 [rows]) or 0,
    own scores (float32 [rows, number]), own ids (int64 [rows, number]), number.
    """
    op = integers(op, FIELDS)
    k, number = op[3], op[7]
    for row in range(start, stop):
        values, ids = floats(op[1] + row * k * 4, k), integers(op[2] + row * k * 8, k)
        scores = floats(op[5] + row * number * 4, number)
        own = integers(op[6] + row * number * 8, number)
        largest = _LOWEST
        for i in range(number):
            # Not "score <= -inf": NaN must not pass.
            if own[i] < 0 or not scores[i] > _LOWEST:
                scores[i] = _LOWEST
                continue
            score, token = scores[i], own[i]
            largest = max(largest, score)
            at = k
            while at > 0 and (
                score > values[at - 1] or (score == values[at - 1] and token < ids[at - 1])
            ):
                at -= 1
            for j in range(k - 1, at, -1):
                values[j], ids[j] = values[j - 1], ids[j - 1]
            if at < k:
                values[at], ids[at] = score, token
        if op[4] and largest > _LOWEST:
            total = floats(op[4] + row * 4, 1)
            base = max(largest, total[0])
            if base < np.float32(np.inf):
                weight = exp(total[0] - base) if total[0] > _LOWEST else _ZERO
                for i in range(number):
                    if scores[i] > _LOWEST:
                        weight += exp(scores[i] - base)
                base += np.log(weight)
            total[0] = base


@helper
def note(ids, stamps, token):
    """Note a token that a list lacks among the entries [number] of a slot and that list."""
    oldest, newest, at = 0, 0, -1
    for i in range(len(ids)):
        if ids[i] == token:
            at = i
        if stamps[i] < stamps[oldest]:
            oldest = i
        newest = max(newest, stamps[i])
    if at < 0:
        at = oldest
    ids[at], stamps[at] = token, newest + 1


@helper
def hold(ids, token):
    """Whether a token is among entries [number]."""
    found = False
    for i in range(len(ids)):
        found |= ids[i] == token
    return found


@helper
def note_all(slot, tokens, count, members, own_ids, own_stamps):
    """Note the first `count` of a row of tokens."""
    for column in range(count):
        token = tokens[column]
        if 0 <= token < len(members):
            for which in range(own_ids.shape[1]):
                if not (members[token] >> which) & 1:
                    note(own_ids[slot, which], own_stamps[slot, which], token)


@compiled(
    types.void(
        *(types.int32[::1], types.int32[:, :, ::1], types.int32[:, :, ::1]),
        *(types.int64[::1], types.int64[:, ::1], types.int64[::1]),
    )
)
def remember(members, own_ids, own_stamps, slots, token_ids, accept_lens):
    """What `fastmtp_kernels.own_tokens.remember_tokens` does on a GPU, with its arguments."""
    for row in range(len(slots)):
        note_all(slots[row], token_ids[row], accept_lens[row], members, own_ids, own_stamps)
