"""Sampling for verification on a CPU: what SGLang has as CUDA kernels, or in torch where
whole rows are sorted.

Shapes: bs requests, n = K + 1 rows each, V vocabulary entries. Probabilities are float32.
"""

from typing import Any

import torch
from torch import Tensor

from fastmtp_sglang.serving.cpu.native import draws, filtering
from fastmtp_sglang.serving.cpu.native.engine import engine


def keep_largest(
    probs: Tensor,
    top_ks: Tensor | None = None,
    top_ps: Tensor | None = None,
    min_ps: Tensor | None = None,
) -> Tensor:
    """Keep of each row what all of its filters keep, and renormalize.

    Each filter sees the whole row, and none stands for one that keeps all. Of equal probabilities
    at the edge those of the lowest ids are kept; so top-k 1, which is how SGLang marks a greedy
    request among sampled ones, keeps the token that argmax takes.

    Args:
        probs: float32 [rows, V].
        top_ks: integer [rows], how many are kept at most.
        top_ps: float32 [rows]; the fewest are kept whose sum reaches it.
        min_ps: float32 [rows], of the largest; what is below that is not kept.

    Returns:
        float32 [rows, V].
    """
    probs = probs.contiguous()
    kept = torch.empty_like(probs)
    _run(filtering.keep, probs, *_limits(len(probs), top_ks, top_ps, min_ps), kept)
    return kept


def top_k_renorm(probs: Tensor, top_ks: Tensor) -> Tensor:
    """`keep_largest` as SGLang asks for top-k alone."""
    return keep_largest(probs, top_ks=top_ks)


def top_p_renorm(probs: Tensor, top_ps: Tensor) -> Tensor:
    """`keep_largest` as SGLang asks for top-p alone."""
    return keep_largest(probs, top_ps=top_ps)


def sample_from(probs: Tensor, coins: Tensor) -> Tensor:
    """Draw one index per row by inverting its cumulative sum, in float64.

    Args:
        probs: float32 [rows, V], not negative, not necessarily normalized, sum above 0.
        coins: float32 [rows], uniform in [0, 1).

    Returns:
        int64 [rows]; never an index of probability 0.
    """
    drawn = torch.empty(len(probs), dtype=torch.int64)
    _run(draws.draw, probs.contiguous(), coins.contiguous(), drawn)
    return drawn


def sample_kept(
    probs: Tensor,
    coins: Tensor,
    top_ks: Tensor | None = None,
    top_ps: Tensor | None = None,
    min_ps: Tensor | None = None,
) -> Tensor:
    """`sample_from` what `keep_largest` keeps, which is not written anywhere.

    Returns:
        int64 [rows].
    """
    drawn = torch.empty(len(probs), dtype=torch.int64)
    limits = _limits(len(probs), top_ks, top_ps, min_ps)
    _run(draws.draw_kept, probs.contiguous(), *limits, coins.contiguous(), drawn)
    return drawn


def sample_seeded(
    probs: Tensor,
    seeds: Tensor,
    positions: Tensor,
    filters: tuple[Tensor, Tensor, Tensor | None] | None = None,
) -> Tensor:
    """Draw one index per row as SGLang's `multinomial_with_seed` does; a row's depends on it alone.

    Args:
        probs: float32 [rows, V].
        seeds: integer [rows].
        positions: integer [rows], of which 32 bits count.
        filters: top-k, top-p and min-p as `keep_largest` takes them. With them SGLang hashes the
            ranks of tokens, which are in the order of their ids where probabilities are equal.

    Returns:
        int64 [rows].
    """
    limits = _limits(len(probs), *(filters or (None, None, None)))
    given = *limits, seeds.long().contiguous(), positions.long().contiguous()
    drawn = torch.empty(len(probs), dtype=torch.int64)
    _run(draws.draw_seeded, probs.contiguous(), *given, drawn, int(filters is not None))
    return drawn


def _run(operator: Any, probs: Tensor, *fields: Tensor | int) -> None:
    """Compute an operator over contiguous rows of probabilities; tensors are given by address."""
    engine().run(
        len(probs),
        operator.address,
        *(probs.data_ptr(), probs.shape[1]),
        *(field if isinstance(field, int) else field.data_ptr() for field in fields),
        parts_a_row=1,
    )


def _limits(
    rows: int, top_ks: Tensor | None, top_ps: Tensor | None, min_ps: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The filters as operators read them, one entry a row."""
    everything = torch.iinfo(torch.int64).max
    return (
        torch.full((rows,), everything) if top_ks is None else top_ks.long().contiguous(),
        torch.ones(rows) if top_ps is None else top_ps.float().contiguous(),
        torch.zeros(rows) if min_ps is None else min_ps.float().contiguous(),
    )


def row_argmax(x: torch.Tensor) -> torch.Tensor:
    """Return the first largest entry of each row, int64 [rows]; the name `x` is SGLang's."""
    return x.argmax(dim=-1)


def sample_chain_from_proposal(
    *,
    predicts: torch.Tensor,
    accept_index: torch.Tensor,
    accept_token_num: torch.Tensor,
    candidates: torch.Tensor,
    retrive_index: torch.Tensor,
    retrive_next_token: torch.Tensor,
    retrive_next_sibling: torch.Tensor,
    uniform_samples: torch.Tensor,
    uniform_samples_for_final_sampling: torch.Tensor,
    target_probs: torch.Tensor,
    draft_probs: torch.Tensor,
    threshold_single: float,
    threshold_acc: float,
    deterministic: bool,
    block_verification: bool = False,
) -> None:
    """Accept drafts that were drawn from q, one by one or as a block; else draw from what is left.

    Rejection sampling (arXiv 2302.01318), lossless for any q that the drafts were drawn from: one
    that is 0 outside a draft list leaves all of p there to the residual, which spans the full
    vocabulary. Where p is certain of one token, any other draft will do: it is rejected. The
    parameter names, `retrive` included, are those of SGLang's operators.

    Args:
        predicts: int32 [bs * n], written.
        accept_index: int32 [bs, n], written.
        accept_token_num: int32 [bs], written.
        candidates: int64 [bs, n]; column 0 is committed, then K drafts.
        retrive_index: int64 [bs, n].
        retrive_next_token: unused, a chain's order is known.
        retrive_next_sibling: unused.
        uniform_samples: [bs, n] coins in [0, 1); column j decides draft j + 1.
        uniform_samples_for_final_sampling: [bs] coins in [0, 1).
        target_probs: [bs, n, V], p after each row.
        draft_probs: [bs, K, V], q of each draft.
        threshold_single: must be 1, see raises.
        threshold_acc: must be 1.
        deterministic: unused, always deterministic given the coins.
        block_verification: decide about the drafts together (arXiv 2403.10444), which accepts at
            least as many on average.

    Raises:
        ValueError: a threshold below 1, which would accept more than the target allows.
    """
    check_thresholds(threshold_single, threshold_acc)
    drafts = candidates[:, 1:].to(torch.int64)
    bs, n, _ = target_probs.shape
    accept = _accept_together if block_verification else _accept_one_by_one
    last, share = accept(drafts, uniform_samples[:, : n - 1], target_probs, draft_probs)

    rows = torch.arange(bs)
    final_probs = target_probs[rows, last]
    if n > 1:
        rejected = (last < n - 1).unsqueeze(1)
        proposed = draft_probs[rows, last.clamp(max=n - 2)]
        residual = (share.unsqueeze(1) * final_probs - proposed).clamp(min=0)
        # Nothing is left only where q is p up to rounding.
        rejected &= residual.sum(1, keepdim=True) > 0
        final_probs = torch.where(rejected, residual, final_probs)
    tokens = torch.zeros(bs, n, dtype=torch.int64)
    tokens[:, :-1] = drafts
    tokens[rows, last] = sample_from(final_probs, uniform_samples_for_final_sampling)

    predicts.copy_(tokens.flatten())
    accept_token_num.copy_(last)
    kept = torch.arange(n) <= last.unsqueeze(1)
    accept_index.copy_(torch.where(kept, retrive_index, -1))


def _accept_one_by_one(
    drafts: Tensor, coins: Tensor, p: Tensor, q: Tensor
) -> tuple[Tensor, Tensor]:
    """Accept each draft with min(1, p/q), up to the first that is not.

    Args:
        drafts: int64 [bs, K].
        coins: [bs, K] in [0, 1).
        p: [bs, K + 1, V], the target's.
        q: [bs, K, V], what the drafts were drawn from.

    Returns:
        int64 [bs] accepted drafts, and [bs] by how much p counts in the residual behind them.
    """
    said, proposed = _of_drafts(drafts, p, q)
    accepted = (coins * proposed < said).to(torch.int32).cumprod(1).sum(1)
    return accepted.to(torch.int64), torch.ones(len(drafts))


def _accept_together(drafts: Tensor, coins: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Accept the longest run of drafts that its own coin lets through (arXiv 2403.10444, alg. 2).

    A run's share is how much of its probability under q the target has use for; a draft that is too
    likely is made good by one before it that was not likely enough. Arguments and results are those
    of `_accept_one_by_one`.
    """
    bs, steps = drafts.shape
    said, proposed = _of_drafts(drafts, p, q)
    ratios = torch.where(proposed > 0, said / proposed, 0.0)
    shares = torch.ones(bs, steps + 1)
    accepted = torch.zeros(bs, dtype=torch.int64)
    for k in range(1, steps + 1):
        share = (shares[:, k - 1] * ratios[:, k - 1]).clamp(max=1.0)
        shares[:, k] = chance = share
        if k < steps:
            left = (share.unsqueeze(1) * p[:, k] - q[:, k]).clamp(min=0).sum(1)
            # Of a share of 1 all runs pass, also where q is p and nothing is left.
            chance = torch.where(share < 1.0, left / (left + 1.0 - share), 1.0)
        accepted = torch.where(coins[:, k - 1] < chance, k, accepted)
    return accepted, shares[torch.arange(bs), accepted]


def _of_drafts(drafts: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """What p and q say of the drafts themselves, [bs, K] each."""
    index = drafts.unsqueeze(2)
    return p[:, :-1].gather(2, index).squeeze(2), q.gather(2, index).squeeze(2)


def check_thresholds(single: float, accumulated: float) -> None:
    """Raise ValueError for an acceptance threshold below 1."""
    if single != 1.0 or accumulated != 1.0:
        raise ValueError("acceptance thresholds below 1 change the output distribution")
