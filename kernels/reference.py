"""The definition of the draft's best tokens, in float64 and in the plainest code.

Every implementation is tested against it. It reads the lists themselves, not the slot tables, so
that a wrong table is found too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtp_kernels.draft_logits import DraftOptions


def reference_scores(hidden: Tensor, head: Tensor, ids: Tensor, options: DraftOptions) -> Tensor:
    """Scores float64 [n] of one row ``hidden`` [D] for the token ``ids`` [n]."""
    scores = options.scale * (head[ids].double() @ hidden.to(head.dtype).double())
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    return scores


def reference_tokens(
    hidden: Tensor,
    languages: Sequence[int],
    head: Tensor,
    lists: Sequence[Tensor],
    options: DraftOptions,
    own: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Best tokens over each row's candidates, by the rules in ``fastmtp_kernels.draft_logits``.

    Args:
        hidden: [B, D].
        languages: B indices into ``lists``; any other value means "no list".
        head: [V, D], the whole matrix.
        lists: ascending int64 token ids of each language.
        options: see ``DraftOptions``.
        own: int64 [n] of each row, the request's own tokens in any order, none of them in the
            row's list; or None.

    Returns:
        ids int64 [B, k], scores float64 [B, k], log-sum-exp float64 [B].
    """
    batch, top_k = len(languages), options.top_k
    ids = torch.full((batch, top_k), options.fallback_id)
    scores = torch.full((batch, top_k), -torch.inf, dtype=torch.float64)
    log_sum_exp = torch.full((batch,), -torch.inf, dtype=torch.float64)
    for row, language in enumerate(languages):
        if not 0 <= language < len(lists):
            continue
        row_ids = lists[language]
        if own is not None:
            row_ids = torch.cat((row_ids, own[row])).sort().values
        row_scores = reference_scores(hidden[row], head, row_ids, options)
        candidates = row_scores > -torch.inf  # false for NaN
        row_ids, row_scores = row_ids[candidates], row_scores[candidates]
        # A stable sort of ascending ids leaves the lowest id first among equals.
        order = row_scores.argsort(descending=True, stable=True)[:top_k]
        ids[row, : len(order)] = row_ids[order]
        scores[row, : len(order)] = row_scores[order]
        log_sum_exp[row] = row_scores.logsumexp(0) if len(row_scores) else -torch.inf
    return ids, scores, log_sum_exp
