"""A request's own tokens, which its lists lack: what they are, from its whole text or step by step.

`fastmtp_kernels.own_tokens` says what is kept. Here are its definition in torch, which CPU serving
and the tests compare with, and the entries of a whole text on the host, for a request that gets a
slot.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmtp_kernels.draft_logits import NO_TOKEN


def remember_in_torch(
    members: Tensor,
    own_ids: Tensor,
    own_stamps: Tensor,
    slots: Tensor,
    token_ids: Tensor,
    accept_lens: Tensor,
) -> None:
    """What `fastmtp_kernels.own_tokens.remember_tokens` does on a GPU, in torch operations."""
    lists, number = own_ids.shape[1:]
    place = torch.arange(number, device=slots.device)
    ids, stamps = own_ids[slots], own_stamps[slots]
    for column, tokens in enumerate(token_ids.long().unbind(1)):
        known = (tokens >= 0) & (tokens < len(members)) & (column < accept_lens)
        tokens = tokens.clamp(0, len(members) - 1)
        bits = members[tokens].unsqueeze(1) >> torch.arange(lists, device=slots.device)
        lacking = known.unsqueeze(1) & (bits & 1 == 0)
        same = ids == tokens[:, None, None]
        oldest = (stamps.long() * number + place).argmin(dim=2)
        at = torch.where(same.any(dim=2), same.int().argmax(dim=2), oldest)
        write = lacking.unsqueeze(2) & (place == at.unsqueeze(2))
        newest = stamps.amax(dim=2, keepdim=True) + 1
        ids = torch.where(write, tokens[:, None, None].int(), ids)
        stamps = torch.where(write, newest, stamps)
    own_ids[slots], own_stamps[slots] = ids, stamps


def own_tokens_of(
    tokens: NDArray[np.int64], members: NDArray[np.int32], lists: int, number: int
) -> tuple[Tensor, Tensor]:
    """The entries of a text, the newest `number` of each list.

    Args:
        tokens: int64 [n], prompt and what was answered so far.
        members: int32 [V], bit l is set where list l holds the token.
        lists: how many there are.
        number: entries of each.

    Returns:
        ids int32 [lists, number], -1 where free, and stamps int32 [lists, number].
    """
    ids = np.full((lists, number), NO_TOKEN, dtype=np.int32)
    stamps = np.zeros((lists, number), dtype=np.int32)
    known = tokens[(tokens >= 0) & (tokens < len(members))]
    last = np.full(len(members), -1)
    last[known] = np.arange(len(known))  # of several places numpy keeps the last
    distinct = known[last[known] == np.arange(len(known))]  # in the order of these
    bits = members[distinct]
    for which in range(lists):
        newest = distinct[(bits >> which) & 1 == 0][-number:]
        ids[which, : len(newest)] = newest
        stamps[which, : len(newest)] = np.arange(1, len(newest) + 1)
    return torch.from_numpy(ids), torch.from_numpy(stamps)


def hold_own(own_ids: Tensor, tokens: Tensor) -> Tensor:
    """Whether entries [B, N] hold each of the tokens [B, n]; bool [B, n]."""
    return (own_ids.unsqueeze(1) == tokens.unsqueeze(2)).any(dim=2)
