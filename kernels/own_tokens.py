"""The tokens of a request that a list lacks: the newest N distinct ones, per request slot and list.

A list holds what is frequent in a language; names, terms and odd spellings that its lists lack come
back within a request. They are kept for every list at once, so that a request that moves to another
list finds what that one lacks. The draft head scores the entries of a row's slot and list beside
the list itself (``fastmtp_kernels.draft_logits``); lists and entries have no token in common.

An entry is a token id and a stamp, which tells how lately the token was seen: what is kept is a
function of the tokens seen, however they were split into verifications. A token without an entry
takes the first free one, or that of the token that was seen longest ago.

``routing.own_tokens`` of fastmtp_sglang defines in torch what happens here. Called on the forward
stream between verification and draft extension; no host reads.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def holds_own(own_ids, tokens, NUMBER: tl.constexpr):
    """Whether each of ``tokens`` [n] is among the entries at ``own_ids``."""
    entries = tl.load(own_ids + tl.arange(0, NUMBER))
    return tl.max((entries[None, :] == tokens[:, None]).to(tl.int32), axis=1) != 0


@triton.jit(do_not_specialize_on_alignment=["slots", "token_ids", "accept_lens"])
def _remember(
    slots,  # int [B]
    token_ids,  # int [B, WIDTH]
    accept_lens,  # int [B]
    members,  # int32 [V]
    own_ids,  # int32 [S, lists, NUMBER]
    own_stamps,  # int32 [S, lists, NUMBER]
    token_stride,
    vocab_size,
    lists,
    WIDTH: tl.constexpr,
    NUMBER: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    which = tl.program_id(1)
    accepted = tl.load(accept_lens + row).to(tl.int32)
    if accepted > 0:
        slot = tl.load(slots + row).to(tl.int64)
        place = tl.arange(0, NUMBER)
        entry = (slot * lists + which) * NUMBER + place
        ids = tl.load(own_ids + entry)
        stamps = tl.load(own_stamps + entry)
        for column in tl.static_range(WIDTH):
            token = tl.load(token_ids + row * token_stride + column).to(tl.int64)
            known = (token >= 0) & (token < vocab_size)
            token = tl.where(known, token, 0).to(tl.int32)
            lacking = ((tl.load(members + token) >> which) & 1) == 0
            own = tl.max(tl.where(ids == token, place, -1), axis=0)
            oldest = tl.min(stamps.to(tl.int64) * NUMBER + place, axis=0) % NUMBER
            at = tl.where(own >= 0, own, oldest.to(tl.int32))
            write = (place == at) & known & lacking & (column < accepted)
            newest = tl.max(stamps, axis=0) + 1
            ids = tl.where(write, token, ids)
            stamps = tl.where(write, newest, stamps)
        tl.store(own_ids + entry, ids)
        tl.store(own_stamps + entry, stamps)


def remember_tokens(
    members: Tensor,
    own_ids: Tensor,
    own_stamps: Tensor,
    slots: Tensor,
    token_ids: Tensor,
    accept_lens: Tensor,
) -> None:
    """Note the tokens that were accepted; launches one kernel.

    Args:
        members: int32 [V], bit l is set where list l holds the token.
        own_ids: int32 [S, lists, N], updated in place; N of ``draft_logits.OWN_TOKENS``.
        own_stamps: int32 [S, lists, N], updated in place; 0 where an entry is free.
        slots: integer [B], distinct where ``accept_lens`` is not 0.
        token_ids: integer [B, n], rows contiguous.
        accept_lens: integer [B], how many of them count; 0 leaves the slot alone.
    """
    batch, width = token_ids.shape
    lists, number = own_ids.shape[1:]
    if batch:
        _remember[(batch, lists)](
            slots,
            token_ids,
            accept_lens,
            members,
            own_ids,
            own_stamps,
            token_ids.stride(0),
            len(members),
            lists,
            WIDTH=width,
            NUMBER=number,
            num_warps=1,
        )
