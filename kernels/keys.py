"""A (score, token id) pair as one int64 key, so that a maximum of keys is the argmax.

The upper half is the float32 score in an order that integers share, the lower half the inverted
id: the greater key has the greater score and, of equal scores, the lower id. Reducing keys is
therefore exact in any order, which makes the kernel deterministic, its tiles combinable in any
grouping, and one tensor-parallel collective of 8 bytes a row enough.

A score of NaN or -inf is no candidate: it encodes as ``EMPTY_KEY``, below every candidate. A row
without candidates decodes to the fallback id with score -inf, however the vocabulary is sharded.
"""

from __future__ import annotations

import torch
from torch import Tensor

EMPTY_KEY = -(1 << 63)
_LOW = 0x7FFFFFFF  # both the greatest token id and the mask that flips a float's lower bits


def encode_keys(scores: Tensor, ids: Tensor) -> Tensor:
    """Pack float32 ``scores`` and int ``ids`` in [0, 2**31) (one shape) into int64 keys."""
    bits = torch.where(scores == 0, 0.0, scores).view(torch.int32)  # -0 and +0 are one score
    ordered = torch.where(bits < 0, bits ^ _LOW, bits)
    keys = (ordered.long() << 32) | (_LOW - ids.long())
    return torch.where(scores > -torch.inf, keys, EMPTY_KEY)


def decode_keys(keys: Tensor, fallback_id: int) -> tuple[Tensor, Tensor]:
    """Unpack int64 ``keys`` into (ids int64, scores float32) of the same shape."""
    ordered = (keys >> 32).int()
    scores = torch.where(ordered < 0, ordered ^ _LOW, ordered).view(torch.float32)
    empty = keys == EMPTY_KEY
    ids = torch.where(empty, fallback_id, _LOW - (keys & _LOW))
    return ids, torch.where(empty, -torch.inf, scores)
