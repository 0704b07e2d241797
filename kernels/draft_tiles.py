"""The two Triton kernels of draft logits: tiles of head rows are scored, then reduced row by row.

``triton_draft`` says what they are for and launches them. Both are pure functions of their
arguments: static shapes, no host reads, and nothing that two programs would write.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastmtp_kernels.slots import MAX_LANGUAGES

_EMPTY_KEY = tl.constexpr(-(1 << 63))
_GREATEST_KEY = tl.constexpr((1 << 63) - 1)
_MAX_LANGUAGES = tl.constexpr(MAX_LANGUAGES)


@triton.jit
def _bitwise_or(a, b):
    return a | b


@triton.jit
def _row_bits(languages, rows, valid):
    """The language bit of each row; 0 for a row without a list."""
    language = tl.load(languages + rows, mask=valid, other=-1).to(tl.int32)
    listed = (language >= 0) & (language < _MAX_LANGUAGES)
    return tl.where(listed, 1 << tl.where(listed, language, 0), 0)


@triton.jit
def _encode_keys(scores, ids):
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)


@triton.jit
def _log_sum_exp(scores, candidate):
    """Over axis 0; an infinite maximum must not turn into inf - inf."""
    largest = tl.max(tl.where(candidate, scores, -float("inf")), axis=0)
    base = tl.where(tl.abs(largest) == float("inf"), 0.0, largest)
    shifted = tl.where(candidate, scores - base, -float("inf"))
    return base + tl.log(tl.sum(tl.exp(shifted), axis=0))


# Arguments that change from call to call: specializing on them would compile while serving.
_OF_A_CALL = ["languages", "request_slots"]


@triton.jit(do_not_specialize=["batch", "tiles"], do_not_specialize_on_alignment=_OF_A_CALL)
def score_tiles(
    hidden,  # [B, D]
    head,  # [V, D]
    head_rows,  # int32 [S], S a multiple of BLOCK_V; padding has no language bit
    token_ids,  # int32 [S]
    slot_bits,  # int32 [S]
    tile_bits,  # int32 [tiles]
    languages,  # int [B]
    tile_keys,  # int64 [B, tiles, TOP_K], out; only where the tile serves the row's language
    tile_lse,  # float32 [B, tiles], out, likewise
    own_ids,  # int32 [request slots, languages, OWN], read if OWN; the last OWN / BLOCK_V tiles
    request_slots,  # int [B], read if OWN
    live_head,  # [V, D], rows of own tokens
    batch,
    tiles,
    hidden_stride,
    head_stride,
    live_stride,
    num_languages,
    first_id,  # of this rank's head rows
    end_id,
    scale,
    softcap,
    D: tl.constexpr,
    TOP_K: tl.constexpr,
    LOG_SUM_EXP: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PACKED: tl.constexpr,
    OWN: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The best keys of a tile for each row of a block of the batch."""
    # Blocks of the batch run side by side, so that the second reads the tile from the L2 cache.
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    tile = tl.program_id(1)
    scored = rows < batch
    if OWN > 0:  # behind the programs of the lists, OWN / BLOCK_V programs for each row
        listed = tiles - OWN // BLOCK_V
        own_program = tile - listed
        is_own = own_program >= 0
        only = tl.program_id(0) * BLOCK_B + own_program // (OWN // BLOCK_V)
        scored = scored & ((rows == only) | (own_program < 0))
        tile = tl.where(is_own, listed + own_program % (OWN // BLOCK_V), tile)
    row_bits = _row_bits(languages, rows, scored)
    batch_bits = tl.reduce(row_bits, 0, _bitwise_or)
    if (tl.load(tile_bits + tile) & batch_bits) == 0:
        return

    slots = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    out = rows * tiles + tile
    rows_at, row_stride = head, head_stride
    if OWN > 0:
        language = tl.load(languages + only, mask=is_own, other=0).to(tl.int64)
        entry = tl.load(request_slots + only, mask=is_own, other=0).to(tl.int64)
        entry = (entry * num_languages + language) * OWN - listed * BLOCK_V
        own_id = tl.load(own_ids + entry + slots, mask=is_own, other=-1)
        held = (own_id >= first_id) & (own_id < end_id)
        if is_own & (tl.max(held.to(tl.int32), axis=0) == 0):
            for j in tl.static_range(TOP_K):
                tl.store(tile_keys + out * TOP_K + j, _EMPTY_KEY, mask=scored)
            if LOG_SUM_EXP:
                tl.store(tile_lse + out, -float("inf"), mask=scored)
            return
        bits = tl.load(slot_bits + slots, mask=own_program < 0, other=0)
        bits = tl.where(held, batch_bits, bits)
        needed = (bits & batch_bits) != 0
        if PACKED:
            head_row = tl.where(is_own, own_id - first_id, slots)
            if is_own:
                rows_at, row_stride = live_head, live_stride
        else:
            head_row = tl.load(head_rows + slots, mask=own_program < 0, other=0)
            head_row = tl.where(is_own, own_id - first_id, head_row)
    else:
        bits = tl.load(slot_bits + slots)
        needed = (bits & batch_bits) != 0  # at a border of languages a tile reads what it must
        head_row = slots if PACKED else tl.load(head_rows + slots)

    k = tl.arange(0, BLOCK_K)
    head_tile = rows_at + head_row.to(tl.int64)[:, None] * row_stride + k[None, :]
    hidden_tile = hidden + rows[None, :] * hidden_stride + k[:, None]
    scores = tl.zeros([BLOCK_V, BLOCK_B], dtype=tl.float32)
    for start in range(0, D, BLOCK_K):
        head_mask = needed[:, None]
        hidden_mask = scored[None, :]
        if D % BLOCK_K != 0:
            head_mask = head_mask & (k[None, :] < D - start)
            hidden_mask = hidden_mask & (k[:, None] < D - start)
        w = tl.load(head_tile + start, mask=head_mask, other=0.0)
        h = tl.load(hidden_tile + start, mask=hidden_mask, other=0.0).to(w.dtype)
        if UPCAST:  # the interpreter's dot would multiply the bit patterns of bfloat16
            w = w.to(tl.float32)
            h = h.to(tl.float32)
        scores = tl.dot(w, h, scores, input_precision="ieee")

    scores = scores * scale
    if SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2x) + 1), right at both infinities
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * (scores / softcap)) + 1.0))
    candidate = ((bits[:, None] & row_bits[None, :]) != 0) & (scores > -float("inf"))
    if OWN > 0:
        ids = tl.load(token_ids + slots, mask=own_program < 0, other=0)
        # Read again instead of kept in registers meanwhile.
        ids = tl.where(is_own, tl.load(own_ids + entry + slots, mask=is_own, other=0), ids)
    else:
        ids = tl.load(token_ids + slots)
    keys = tl.where(candidate, _encode_keys(scores, ids[:, None]), _EMPTY_KEY)

    best = tl.max(keys, axis=0)
    tl.store(tile_keys + out * TOP_K, best, mask=scored)
    for j in range(1, TOP_K):  # keys are unique, so the next one is the greatest below
        best = tl.max(tl.where(keys < best[None, :], keys, _EMPTY_KEY), axis=0)
        tl.store(tile_keys + out * TOP_K + j, best, mask=scored)
    if LOG_SUM_EXP:
        tl.store(tile_lse + out, _log_sum_exp(scores, candidate), mask=scored)


@triton.jit(
    do_not_specialize=[
        "tiles",
        "key_row_stride",
        "key_tile_stride",
        "lse_row_stride",
        "lse_tile_stride",
    ],
    do_not_specialize_on_alignment=["languages", "tile_keys", "tile_lse"],
)
def reduce_tiles(
    tile_keys,  # int64, TOP_K of them at row * key_row_stride + tile * key_tile_stride
    tile_lse,  # float32, at row * lse_row_stride + tile * lse_tile_stride
    tile_bits,  # int32 [tiles], read if BY_LANGUAGE
    languages,  # int [B], read if BY_LANGUAGE
    ids,  # int64 [B, TOP_K], out
    scores,  # float32 [B, TOP_K], out
    keys,  # int64 [B, TOP_K], out
    lse,  # float32 [B], out
    fallback_id,
    tiles,
    key_row_stride,
    key_tile_stride,
    lse_row_stride,
    lse_tile_stride,
    TOP_K: tl.constexpr,
    LOG_SUM_EXP: tl.constexpr,
    BY_LANGUAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The best of all tiles' keys for one row."""
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    row_bit = 0
    if BY_LANGUAGE:
        row_bit = _row_bits(languages, row, True)

    best = tl.full([], _GREATEST_KEY, tl.int64)
    for j in tl.static_range(TOP_K):
        previous = best
        largest = tl.full([BLOCK], _EMPTY_KEY, tl.int64)
        for start in range(0, tiles * TOP_K, BLOCK):
            entry = start + lanes
            tile = entry // TOP_K
            serves = entry < tiles * TOP_K
            if BY_LANGUAGE:
                serves = serves & ((tl.load(tile_bits + tile, mask=serves, other=0) & row_bit) != 0)
            offset = row * key_row_stride + tile * key_tile_stride + entry % TOP_K
            key = tl.load(tile_keys + offset, mask=serves, other=_EMPTY_KEY)
            largest = tl.where((key > largest) & (key < previous), key, largest)
        best = tl.max(largest, axis=0)
        ordered = (best >> 32).to(tl.int32)
        score = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
        token_id = 0x7FFFFFFF - (best & 0x7FFFFFFF)
        empty = best == _EMPTY_KEY
        tl.store(ids + row * TOP_K + j, tl.where(empty, fallback_id, token_id))
        tl.store(scores + row * TOP_K + j, tl.where(empty, -float("inf"), score))
        tl.store(keys + row * TOP_K + j, best)

    if LOG_SUM_EXP:
        # The running sum over blocks of tiles keeps one value a lane: log(e^a + e^b) lane by lane.
        total = tl.full([BLOCK], -float("inf"), tl.float32)
        for start in range(0, tiles, BLOCK):
            tile = start + lanes
            serves = tile < tiles
            if BY_LANGUAGE:
                serves = serves & ((tl.load(tile_bits + tile, mask=serves, other=0) & row_bit) != 0)
            offset = row * lse_row_stride + tile * lse_tile_stride
            part = tl.load(tile_lse + offset, mask=serves, other=-float("inf"))
            larger = tl.maximum(total, part)
            base = tl.where(tl.abs(larger) == float("inf"), 0.0, larger)
            total = base + tl.log(tl.exp(total - base) + tl.exp(part - base))
        tl.store(lse + row, _log_sum_exp(total, total > -float("inf")))
