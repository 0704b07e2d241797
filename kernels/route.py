"""The language state of request slots, moved on by one verification in one kernel.

``routing.Router`` of fastmtp_sglang defines in torch what happens here, and is what CPU serving and
the tests run; as torch operations it would be more than a hundred small kernels a step. A program a
request: it loads the slot's state and the K + 1 tokens, and stores the state and the list that the
slot drafts from next. Slots of one call are distinct, so programs never meet; padding rows, which
all name slot 0, accept nothing and are left alone.

Called on the forward stream between verification and draft extension; no host reads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmtp_kernels.draft_logits import NO_TOKEN
from fastmtp_kernels.own_tokens import holds_own, remember_tokens

NUM_COUNTS = 6


class RouteTables(NamedTuple):
    """What never changes while serving.

    Attributes:
        token_scripts: int8 [V].
        members: int32 [V], bit l is set where list l holds the token.
        routes: int64 [languages + 1], list of each language; the last entry is for none.
        language_of_script: int64 [scripts], the language that a script stands for, or -1.
    """

    token_scripts: Tensor
    members: Tensor
    routes: Tensor
    language_of_script: Tensor


class RouteState(NamedTuple):
    """State of S request slots; updated in place.

    Attributes:
        scripts: float32 [S, scripts], tokens seen per script, fading.
        language: int64 [S], or -1.
        named: int64 [S], the list that the request names, or -1.
        wanted: int64 [S], the list that language or name asks for.
        seen: float32 [S], tokens seen since the wanted list was chosen, fading.
        outside: float32 [S], those that it lacks, fading.
        left: bool [S], whether it has been left for the full vocabulary.
        lists: int64 [S], the list to draft from, or -1.
        counts: int64 [S, 6, lists]: drafted, accepted, misses, re-routed, fallbacks, avoided.
        own_ids: int32 [S, lists, N], tokens of the request that each list lacks, see
            ``own_tokens``; N is 0 where they are not drafted from.
        own_stamps: int32 [S, lists, N].
    """

    scripts: Tensor
    language: Tensor
    named: Tensor
    wanted: Tensor
    seen: Tensor
    outside: Tensor
    left: Tensor
    lists: Tensor
    counts: Tensor
    own_ids: Tensor
    own_stamps: Tensor


class RouteRules(NamedTuple):
    """The constants of the decision, see ``vocabulary.languages`` and ``routing``."""

    latin: int
    han: int
    kana: int
    code: int
    other: int
    code_language: int
    kana_language: int
    half_life: float
    min_evidence: float
    latin_weight: float
    min_kana_share: float
    min_code_signs: float
    leave_above: float
    return_below: float
    min_seen: float


@triton.jit
def _column(values, index: tl.constexpr, columns):
    return tl.sum(tl.where(columns == index, values, 0.0), axis=0)


@triton.jit
def _add(counts, count: tl.constexpr, lists, list_index, amount):
    place = counts + count * lists + list_index
    tl.store(place, tl.load(place) + amount)


@triton.jit
def _advance(
    slots,
    token_ids,
    accept_lens,
    token_scripts,
    members,
    routes,
    language_of_script,
    scripts,
    language_state,
    named_state,
    wanted_state,
    seen_state,
    outside_state,
    left_state,
    list_state,
    counts,
    own_ids,
    token_stride,
    vocab_size,
    full_list,
    num_languages,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SCRIPTS: tl.constexpr,
    COUNTS: tl.constexpr,
    OWN: tl.constexpr,
    LATIN: tl.constexpr,
    HAN: tl.constexpr,
    KANA: tl.constexpr,
    CODE: tl.constexpr,
    OTHER: tl.constexpr,
    CODE_LANGUAGE: tl.constexpr,
    KANA_LANGUAGE: tl.constexpr,
    HALF_LIFE: tl.constexpr,
    MIN_EVIDENCE: tl.constexpr,
    LATIN_WEIGHT: tl.constexpr,
    MIN_KANA_SHARE: tl.constexpr,
    MIN_CODE_SIGNS: tl.constexpr,
    LEAVE_ABOVE: tl.constexpr,
    RETURN_BELOW: tl.constexpr,
    MIN_SEEN: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    accepted = tl.load(accept_lens + row).to(tl.int32)
    if accepted > 0:
        slot = tl.load(slots + row).to(tl.int64)
        column = tl.arange(0, BLOCK)
        in_row = column < WIDTH
        token = tl.load(token_ids + row * token_stride + column, mask=in_row, other=0).to(tl.int64)
        known = (token >= 0) & (token < vocab_size)
        token = tl.where(known, token, tl.where(token < 0, 0, vocab_size - 1))
        valid = in_row & (column < accepted)
        holders = tl.load(members + token, mask=in_row, other=0)
        script = tl.load(token_scripts + token, mask=in_row, other=0).to(tl.int32)
        script = tl.where(known, script, 0)

        lists = full_list + 1
        counts += slot * COUNTS * lists
        used = tl.maximum(tl.load(list_state + slot), 0).to(tl.int32)
        unlisted = valid & (((holders >> used) & 1) == 0)
        missed = unlisted & (column == accepted - 1) & (accepted < WIDTH)
        if OWN > 0:
            own_ids += slot * lists * OWN
            missed = missed & (holds_own(own_ids + used * OWN, token, OWN) == 0)
        _add(counts, 0, lists, used, WIDTH - 1)
        _add(counts, 1, lists, used, accepted - 1)
        _add(counts, 2, lists, used, tl.sum(missed.to(tl.int32), axis=0))
        avoided = tl.sum((unlisted & (column < accepted - 1)).to(tl.int32), axis=0)
        _add(counts, 5, lists, used, avoided)

        # The language of what has been said so far.
        fade = tl.exp2(-accepted.to(tl.float32) / HALF_LIFE)
        kind = tl.arange(0, SCRIPTS)
        hits = (script[:, None] == kind[None, :]) & valid[:, None]
        place = scripts + slot * SCRIPTS + kind
        seen_scripts = tl.load(place) * fade + tl.sum(hits.to(tl.float32), axis=0)
        tl.store(place, seen_scripts)
        latin = _column(seen_scripts, LATIN, kind)
        kana = _column(seen_scripts, KANA, kind)
        cjk = _column(seen_scripts, HAN, kind) + kana
        votes = tl.where((kind < LATIN) | (kind == KANA) | (kind == OTHER), 0.0, seen_scripts)
        votes = tl.where(kind == LATIN, LATIN_WEIGHT * latin, votes)
        votes = tl.where(kind == HAN, cjk, votes)
        best = tl.max(votes, axis=0)
        winner = tl.argmax(votes, axis=0)
        winning = tl.load(language_of_script + winner)
        is_code = _column(seen_scripts, CODE, kind) > MIN_CODE_SIGNS * latin
        winning = tl.where((winner == LATIN) & is_code, CODE_LANGUAGE, winning)
        is_japanese = kana > MIN_KANA_SHARE * cjk
        winning = tl.where((winner == HAN) & is_japanese, KANA_LANGUAGE, winning)
        has_majority = 2 * best > tl.sum(votes, axis=0) + _column(seen_scripts, OTHER, kind)
        enough = tl.sum(tl.where(kind >= LATIN, seen_scripts, 0.0), axis=0) >= MIN_EVIDENCE
        language = tl.where(
            enough, tl.where(has_majority, winning, -1), tl.load(language_state + slot)
        )
        tl.store(language_state + slot, language)

        # The list that it asks for, and whether that list serves.
        named = tl.load(named_state + slot)
        route = tl.load(routes + tl.where(language < 0, num_languages, language))
        wanted = tl.where(named >= 0, named, route)
        rerouted = wanted != tl.load(wanted_state + slot)
        tl.store(wanted_state + slot, wanted)
        wanted_bit = wanted.to(tl.int32)
        lacked = valid & (((holders >> wanted_bit) & 1) == 0)
        if OWN > 0:
            lacked = lacked & (holds_own(own_ids + wanted_bit * OWN, token, OWN) == 0)
        lacking = tl.sum(lacked.to(tl.float32), axis=0)
        kept = tl.where(rerouted, 0.0, fade)
        seen = tl.load(seen_state + slot) * kept + accepted
        outside = tl.load(outside_state + slot) * kept + lacking
        was_left = tl.load(left_state + slot).to(tl.int1) & (rerouted == 0)
        limit = tl.where(was_left, RETURN_BELOW, LEAVE_ABOVE)
        left = (outside > limit * seen) & (seen >= MIN_SEEN)
        tl.store(seen_state + slot, seen)
        tl.store(outside_state + slot, outside)
        tl.store(left_state + slot, left)
        tl.store(list_state + slot, tl.where(left, full_list, wanted))
        _add(counts, 3, lists, wanted_bit, rerouted.to(tl.int32))
        _add(counts, 4, lists, wanted_bit, (left & (was_left == 0)).to(tl.int32))


def advance_routes(
    tables: RouteTables,
    state: RouteState,
    rules: RouteRules,
    slots: Tensor,
    token_ids: Tensor,
    accept_lens: Tensor,
) -> None:
    """Move the slots on by the tokens that one verification accepted.

    Launches one kernel, and one more where a request's own tokens are drafted from: that changes
    what this one reads.

    Args:
        tables: on the device.
        state: updated in place.
        rules: constants; compiled in.
        slots: integer [B], distinct where `accept_lens` is not 0.
        token_ids: integer [B, K+1], rows contiguous: the target's choice after each draft.
        accept_lens: integer [B], how many of them count; 0 leaves the slot alone.
    """
    batch, width = token_ids.shape
    if batch:
        _advance[(batch,)](
            slots,
            token_ids,
            accept_lens,
            *tables,
            *state[:-1],
            token_ids.stride(0),
            len(tables.token_scripts),
            state.counts.shape[2] - 1,
            len(tables.routes) - 1,
            WIDTH=width,
            BLOCK=triton.next_power_of_2(width),
            SCRIPTS=state.scripts.shape[1],
            COUNTS=state.counts.shape[1],
            OWN=state.own_ids.shape[2],
            **{name.upper(): value for name, value in rules._asdict().items()},
            num_warps=1,
        )
        if state.own_ids.shape[2]:
            own = state.own_ids, state.own_stamps
            remember_tokens(tables.members, *own, slots, token_ids, accept_lens)


def new_state(
    num_slots: int, scripts: int, lists: int, own_tokens: int, device: torch.device | str
) -> RouteState:
    """Slots that no request has used: no language, no list, no own tokens."""

    def full(value: float, dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.full((num_slots, *shape), value, dtype=dtype, device=device)

    return RouteState(
        scripts=full(0, torch.float32, scripts),
        language=full(-1, torch.int64),
        named=full(-1, torch.int64),
        wanted=full(lists - 1, torch.int64),
        seen=full(0, torch.float32),
        outside=full(0, torch.float32),
        left=full(False, torch.bool),
        lists=full(-1, torch.int64),
        counts=full(0, torch.int64, NUM_COUNTS, lists),
        own_ids=full(NO_TOKEN, torch.int32, lists, own_tokens),
        own_stamps=full(0, torch.int32, lists, own_tokens),
    )
