"""Which row a verified row follows, out of the links that SGLang keeps of a draft tree."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtp_sglang.contract.tree_shape import MAX_TOP_K


def parents(next_token: Tensor, next_sibling: Tensor) -> Tensor:
    """The parent of each row, int64 [B, n]; -1 for the root and for what nothing leads to.

    A chain is a tree too. Device operations of fixed shape only.

    Args:
        next_token: int64 [B, n], each row's first child, -1 for none.
        next_sibling: int64 [B, n], the next child of the same parent, -1 for none.
    """
    bs, n = next_token.shape
    row = torch.arange(n + 1, device=next_token.device)
    # Links to nowhere write into a column more.
    of_first = next_token.new_full((bs, n + 1), -1)
    of_first.scatter_(1, next_token.where(next_token >= 0, n), row[:n].expand(bs, n))
    first = row.repeat(bs, 1)
    first.scatter_(1, next_sibling.where(next_sibling >= 0, n), row[:n].expand(bs, n))
    first = first[:, :n]
    for _ in range((MAX_TOP_K - 1).bit_length()):
        first = first.gather(1, first)
    return of_first.gather(1, first)
