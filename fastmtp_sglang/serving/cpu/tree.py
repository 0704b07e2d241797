"""Draft trees on a CPU: building, verifying and packing them, which SGLang has as kernels only.

Shapes: bs requests; n rows verified for each, the last token that was decided (row 0, the root) and
n - 1 drafts; V vocabulary entries. A row's parent comes before it. Trees come as SGLang links them:
`next_token` int64 [bs, n] is a row's first child, `next_sibling` the next child of the same parent,
-1 for none. A chain is the tree in which every row but the last has one child. The parameter names,
`retrive` included, are those of SGLang's operators.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmtp_sglang.serving.cpu.native import trees
from fastmtp_sglang.serving.cpu.sampling import check_thresholds, sample_from
from fastmtp_sglang.serving.verification.tree_links import parents


def build_tree(
    parent_list: Tensor,
    top_scores_index: Tensor,
    seq_lens: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    topk: int,
    spec_steps: int,
    num_verify_tokens: int,
    tree_mask_mode: Any,
) -> None:
    """Link the drafts that are verified.

    A draft is known by its number among all drafts: `topk` of the first step, then topk * topk of
    each further one, children of the same parent together.

    Args:
        parent_list: int64 [bs, 1 + topk * (spec_steps - 1)]; entry i is the number of the draft
            whose children have the numbers i * topk onwards; the first entry is unused.
        top_scores_index: int64 [bs, n - 1], ascending numbers of the drafts that are verified.
        seq_lens: integer [bs].
        tree_mask: bool [bs * n * n], written: which of its request's rows each row sees.
        positions: int64 [bs * n], written.
        retrieve_index: int64 [bs, n], written: the number of each row in the batch.
        retrieve_next_token: int64 [bs, n], written.
        retrieve_next_sibling: int64 [bs, n], written.
        topk: branches.
        spec_steps: K.
        num_verify_tokens: n.
        tree_mask_mode: of the one layout that our attention asks for.
    """
    bs, n = retrieve_index.shape
    trees.link(
        _array(parent_list),
        _array(top_scores_index),
        _array(seq_lens),
        tree_mask.view(bs, n, n).numpy(),
        positions.view(bs, n).numpy(),
        retrieve_index.numpy(),
        retrieve_next_token.numpy(),
        retrieve_next_sibling.numpy(),
        topk,
    )


def verify_tree_greedy(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    target_predict: Tensor,
    topk: int = -1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Accept drafts as long as one of a row's children is what the target says after that row.

    Args:
        predicts: int32 [bs * n], written: the target's token for every row.
        accept_index: int32 [bs, K + 1], written: accepted rows, the root's first, -1 beyond.
        accept_token_num: int32 [bs], written: accepted drafts, without the bonus token.
        candidates: int64 [bs, n], tokens of the rows.
        retrieve_index: int64 [bs, n], the number of each row in the batch.
        retrieve_next_token: int64 [bs, n].
        retrieve_next_sibling: int64 [bs, n].
        target_predict: int64 [bs, n], the target's token after each row.
        topk: unused, the links say it.
    """
    trees.follow(
        _array(candidates),
        _array(target_predict),
        *(_array(x) for x in (retrieve_index, retrieve_next_token, retrieve_next_sibling)),
        accept_index.numpy(),
        accept_token_num.numpy(),
    )
    predicts.copy_(target_predict.flatten())
    return predicts, accept_index, accept_token_num


def sample_tree_target_only(
    *,
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float,
    threshold_acc: float,
    deterministic: bool,
) -> None:
    """Accept one of a row's children with the probabilities that the target gives them.

    One coin decides about all children of a row, different tokens x1, x2, ...: the first is
    accepted below p(x1), the second between that and p(x1) + p(x2), and so on; above the last, the
    next token is drawn from p without them, renormalized. So each is emitted with the probability
    p, whatever was drafted; of a chain this is rejection sampling (arXiv 2302.01318) for a proposal
    that is certain of one token.

    Args:
        predicts: int32 [bs * n], written on the accepted rows.
        accept_index: int32 [bs, K + 1], written.
        accept_token_num: int32 [bs], written.
        candidates: int64 [bs, n], tokens of the rows.
        retrive_index: int64 [bs, n].
        retrive_next_token: int64 [bs, n].
        retrive_next_sibling: int64 [bs, n].
        uniform_samples: [bs, n] coins in [0, 1); that of a row decides about its children.
        uniform_samples_for_final_sampling: [bs] coins in [0, 1).
        target_probs: [bs, n, V].
        draft_probs: unused, the proposal is a point mass.
        threshold_single: must be 1, see raises.
        threshold_acc: must be 1.
        deterministic: unused, always deterministic given the coins.

    Raises:
        ValueError: a threshold below 1, which would accept more than the target allows.
    """
    check_thresholds(threshold_single, threshold_acc)
    parent = parents(retrive_next_token, retrive_next_sibling)
    request, above = torch.arange(len(parent)), parent.clamp(min=0)
    share = target_probs[request.unsqueeze(1), above, candidates].double()
    before = (_earlier_siblings(parent) * share.unsqueeze(1)).sum(2)
    coin = uniform_samples.double().gather(1, above)
    right = (before <= coin) & (coin < before + share)
    last = _accept(right, parent, accept_index, accept_token_num, retrive_index)

    probs = target_probs[request, last]
    # The children of the last row have all been rejected.
    rest = probs.clone()
    of_last, row = (parent == last.unsqueeze(1)).nonzero(as_tuple=True)
    rest[of_last, candidates[of_last, row]] = 0.0
    # Nothing is left only where rounding has made the rejected ones less than all.
    rest = torch.where(rest.sum(1, keepdim=True) > 0, rest, probs)
    bonus = sample_from(rest, uniform_samples_for_final_sampling)
    # An accepted row is followed by the next one's token, the last one by the bonus token.
    on_path, following = accept_index[:, :-1], accept_index[:, 1:]
    followed = following >= 0
    predicts[on_path[followed].long()] = candidates.flatten()[following[followed].long()].int()
    predicts[retrive_index[request, last]] = bonus.int()


def _array(x: Tensor) -> np.ndarray:
    # Some of SGLang's are of 32 bits, such as the lone rows of steps without drafts.
    return x.long().contiguous().numpy()


def _earlier_siblings(parent: Tensor) -> Tensor:
    """Bool [bs, n, n]: whether the second row is a child of the first one's parent, before it."""
    n = parent.shape[1]
    same = (parent.unsqueeze(1) == parent.unsqueeze(2)) & (parent >= 0).unsqueeze(2)
    return same & torch.ones(n, n, dtype=torch.bool).tril(-1)


def _accept(
    right: Tensor,
    parent: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    retrieve_index: Tensor,
) -> Tensor:
    """Go down each tree as long as a child is right.

    Args:
        right: bool [bs, n], whether a row is what its parent is followed by; the first of siblings
            counts.
        parent: int64 [bs, n], from `parents`.
        accept_index: int32 [bs, K + 1], written.
        accept_token_num: int32 [bs], written.
        retrieve_index: int64 [bs, n].

    Returns:
        int64 [bs], the last accepted row.
    """
    n, width = parent.shape[1], accept_index.shape[1]
    row = torch.arange(n)
    right = right & (parent >= 0)
    right &= ~(_earlier_siblings(parent) & right.unsqueeze(1)).any(2)
    root = (row == 0).expand_as(parent)
    reached = root
    for _ in range(width - 1):
        reached = root | (right & reached.gather(1, parent.clamp(min=0)))
    path = torch.where(reached, row, n).sort(1).values[:, :width]
    accept_token_num.copy_((path < n).sum(1) - 1)
    numbers = retrieve_index.gather(1, path.clamp(max=n - 1))
    accept_index.copy_(torch.where(path < n, numbers, -1))
    return path.where(path < n, -1).amax(1)


def pack_first_slots(num_front: Tensor, out_cache_loc: Tensor, front_out_cache_loc: Tensor) -> None:
    """Put the first `num_front` [bs] slots of each request's n side by side, from the front on."""
    window = out_cache_loc.view(len(num_front), -1)
    chosen = window[torch.arange(window.shape[1]) < num_front.unsqueeze(1)]
    front_out_cache_loc[: len(chosen)] = chosen


def pack_accepted_slots(
    accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor, size: int
) -> None:
    """Put the slots of the accepted rows side by side; `accept_index` has -1 for no row."""
    chosen = out_cache_loc[accept_index[accept_index >= 0].long()]
    accept_out_cache_loc[: len(chosen)] = chosen


def keep_prefix_in_place(*_: Any) -> None:
    """Do nothing: our attention reads slots, so that branches need no pages with a copied start."""
