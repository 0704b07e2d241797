"""Which keys the query rows of a draft tree see: the one description that attention is given.

A row sees the first `prefix` keys of its request and, of the 64 after these, those whose bit is set
in `tree`: bit j is the key at position prefix + j of the request's cache slots. A row's position in
the text is prefix + (number of its bits) - 1: there is a bit for each token of its branch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_BITS = 64


class Visibility(NamedTuple):
    """What the rows of b requests see, n rows each.

    Attributes:
        prefix: int64 [b, n].
        tree: int64 [b, n], bits; the highest one is the sign.
    """

    prefix: Tensor
    tree: Tensor

    def dense(self, width: int) -> Tensor:
        """Bool [b, n, width]: whether a row sees the key at each position."""
        behind = torch.arange(width) - self.prefix.unsqueeze(-1)
        bits = self.tree.unsqueeze(-1) >> behind.clamp(0, _BITS - 1) & 1
        return (behind < 0) | ((behind < _BITS) & (bits != 0))

    @property
    def position(self) -> Tensor:
        """Position of each row's own token, int64 [b, n]."""
        return self.prefix + _ones(self.tree) - 1


def of_verified_tree(seq_lens: Tensor, tree_mask: Tensor, num_rows: int) -> Visibility:
    """Rows of a tree that is verified: all that is decided, the row's ancestors, and itself.

    Args:
        seq_lens: integer [b], keys before the tree's.
        tree_mask: bool [b * n * n], which of its request's rows each row sees.
        num_rows: n, at most 64.
    """
    seen = tree_mask.view(len(seq_lens), num_rows, num_rows).long()
    tree = (seen << torch.arange(num_rows)).sum(2)
    return Visibility(seq_lens.long().unsqueeze(1).expand_as(tree), tree)


def of_drafted_branches(seq_lens: Tensor, topk: int, num_steps: int, step: int) -> Visibility:
    """Rows of a draft step, one for each branch: all that is decided, and what the branch wrote.

    Branch b writes its step s at the position seq_len + b * num_steps + s.

    Args:
        seq_lens: integer [b].
        topk: branches.
        num_steps: K; topk * num_steps is at most 64.
        step: number of the draft step, from 0; its own keys are written before they are read.
    """
    own = (1 << (step + 1)) - 1
    branches = torch.tensor([_signed(own << (b * num_steps)) for b in range(topk)])
    tree = branches.expand(len(seq_lens), -1)
    return Visibility(seq_lens.long().unsqueeze(1).expand_as(tree), tree)


def _signed(bits: int) -> int:
    return bits - (1 << _BITS) if bits >> (_BITS - 1) else bits


def _ones(words: Tensor) -> Tensor:
    return ((words.unsqueeze(-1) >> torch.arange(_BITS)) & 1).sum(-1)
