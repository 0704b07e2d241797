"""Sampling for verification on a CPU: what SGLang has only as CUDA kernels, in torch.

Shapes: bs requests, n = K + 1 rows each, V vocabulary entries. Probabilities are float32.
"""

import torch

# Entries among which a nucleus is looked for first: a full sort of 49,152 takes 9 ms.
_NUCLEUS = 512


def top_k_renorm(probs: torch.Tensor, top_ks: torch.Tensor) -> torch.Tensor:
    """Keep the top_ks[i] largest entries of row i (ties at the edge included) and renormalize.

    With top_ks[i] = 1, which is how SGLang marks a greedy request among sampled ones, only the
    first maximum stays: the token that argmax takes.
    """
    limit = top_ks.clamp(1, probs.shape[1]).to(torch.int64)
    widest = int(limit.max())
    if widest == probs.shape[1]:
        ordered = probs.sort(dim=1, descending=True).values
    else:
        ordered = probs.topk(widest, dim=1).values
    threshold = ordered.gather(1, (limit - 1).unsqueeze(1))
    kept = torch.where(probs >= threshold, probs, 0.0)
    greedy = limit == 1
    kept[greedy] = 0.0
    kept[greedy, probs[greedy].argmax(1)] = 1.0
    return kept / kept.sum(1, keepdim=True)


def top_p_renorm(probs: torch.Tensor, top_ps: torch.Tensor) -> torch.Tensor:
    """Keep the fewest largest entries of row i whose sum reaches top_ps[i] and renormalize."""
    kept = probs.clone()
    # 1 keeps all, also what lies behind the point where rounded sums have reached it.
    left = (top_ps < 1).nonzero().squeeze(1)
    for width in (min(_NUCLEUS, probs.shape[1]), probs.shape[1]):
        if len(left) == 0:
            break
        rows, limit = probs[left], top_ps[left].unsqueeze(1)
        if width < probs.shape[1]:
            ordered, index = rows.topk(width, dim=1)
        else:
            ordered, index = rows.sort(dim=1, descending=True)
        total = ordered.cumsum(1)
        nucleus = torch.where(total - ordered < limit, ordered, 0.0)
        kept[left] = torch.zeros_like(rows).scatter_(1, index, nucleus)
        # What lies behind the first entries is out only once their sum has reached the limit.
        left = left[total[:, -1] < limit.squeeze(1)]
    return kept / kept.sum(1, keepdim=True)


def row_argmax(x: torch.Tensor) -> torch.Tensor:
    """Return the first largest entry of each row, int64 [rows]; the name `x` is SGLang's."""
    return x.argmax(dim=-1)


def sample_from(probs: torch.Tensor, coins: torch.Tensor) -> torch.Tensor:
    """Draw one index per row by inverting its cumulative sum.

    Args:
        probs: [rows, V], not negative, not necessarily normalized, sum above 0.
        coins: [rows], uniform in [0, 1).

    Returns:
        int64 [rows]; never an index of probability 0.
    """
    cumulative = probs.to(torch.float64).cumsum(1)
    point = coins.to(torch.float64) * cumulative[:, -1]
    # right=True steps past entries of probability 0 that end exactly at the point.
    return torch.searchsorted(cumulative, point.unsqueeze(1), right=True).squeeze(1)


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
    """Accept a draft that was drawn from q with min(1, p/q); else draw from (p - q)+.

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
        block_verification: must be False.

    Raises:
        ValueError: a threshold below 1, which would accept more than the target allows, or block
            verification, for which there is no operator here.
    """
    check_thresholds(threshold_single, threshold_acc)
    if block_verification:
        raise ValueError("block verification has no operator on the CPU platform")
    drafts = candidates[:, 1:].to(torch.int64)
    bs, n, _ = target_probs.shape
    index = drafts.unsqueeze(2)
    p = target_probs[:, :-1].gather(2, index).squeeze(2)
    q = draft_probs.gather(2, index).squeeze(2)
    agreed = uniform_samples[:, : n - 1] * q < p
    accepted = agreed.to(torch.int32).cumprod(1).sum(1)

    rows, last = torch.arange(bs), accepted.to(torch.int64)
    final_probs = target_probs[rows, last]
    if n > 1:
        rejected = (last < n - 1).unsqueeze(1)
        residual = (final_probs - draft_probs[rows, last.clamp(max=n - 2)]).clamp(min=0)
        # Nothing is left only where q is p up to rounding.
        rejected &= residual.sum(1, keepdim=True) > 0
        final_probs = torch.where(rejected, residual, final_probs)
    tokens = torch.zeros(bs, n, dtype=torch.int64)
    tokens[:, :-1] = drafts
    tokens[rows, last] = sample_from(final_probs, uniform_samples_for_final_sampling)

    predicts.copy_(tokens.flatten())
    accept_token_num.copy_(accepted)
    kept = torch.arange(n) <= accepted.unsqueeze(1)
    accept_index.copy_(torch.where(kept, retrive_index, -1))


def check_thresholds(single: float, accumulated: float) -> None:
    """Raise ValueError for an acceptance threshold below 1."""
    if single != 1.0 or accumulated != 1.0:
        raise ValueError("acceptance thresholds below 1 change the output distribution")
