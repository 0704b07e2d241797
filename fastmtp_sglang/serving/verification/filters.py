"""The distribution that a request samples from: temperature's, filtered by top-k, top-p and min-p.

SGLang's verification filters in another way than its sampler does for the very same request: it
takes the top-p of what top-k has left, where the sampler takes both of the whole distribution, and
it ignores min-p. `target_distribution` is the sampler's, so that later tokens of an answer are
drawn as the first one is and as all are without speculation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

if TYPE_CHECKING:
    from torch import Tensor

    Renorm = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Filters:
    """The filters of a batch, one entry per row of probabilities; None where no row has one.

    Attributes:
        top_ks: int32 [rows]; 1 for a greedy request.
        top_ps: float32 [rows].
        min_ps: float32 [rows].
        one_after_another: a row with a min-p takes the top-p of what its top-k leaves. SGLang's
            sampler does with FlashInfer; without it, all three see the whole distribution.
    """

    # A platform's own way to apply all three to the whole distribution: probabilities, then these.
    at_once: ClassVar[Callable[..., Tensor] | None] = None

    top_ks: Tensor | None
    top_ps: Tensor | None
    min_ps: Tensor | None
    one_after_another: bool

    @staticmethod
    def of(sampling_info: Any, rows_per_request: int, backend: str) -> Filters | None:
        """Return the filters of a batch, or None where nothing is filtered.

        Args:
            sampling_info: SGLang's SamplingBatchInfo.
            rows_per_request: n, each request has the same filters on all its rows.
            backend: SGLang's --sampling-backend.
        """
        if sampling_info.is_all_greedy:
            return None

        def rows(values: Tensor, needed: bool) -> Tensor | None:
            return values.repeat_interleave(rows_per_request) if needed else None

        filters = Filters(
            rows(sampling_info.top_ks, sampling_info.need_top_k_sampling),
            rows(sampling_info.top_ps, sampling_info.need_top_p_sampling),
            rows(sampling_info.min_ps, sampling_info.need_min_p_sampling),
            one_after_another=backend == "flashinfer",
        )
        nothing = filters.top_ks is None and filters.top_ps is None and filters.min_ps is None
        return None if nothing else filters


def target_distribution(
    probs: Tensor, filters: Filters, top_k_renorm: Renorm, top_p_renorm: Renorm
) -> Tensor:
    """Filter and renormalize rows of probabilities.

    Args:
        probs: float32 [rows, V], each row's softmax at its temperature.
        filters: of these rows.
        top_k_renorm: keeps the k largest entries of each row and renormalizes; the device's.
        top_p_renorm: keeps the fewest largest whose sum reaches p and renormalizes; the device's.

    Returns:
        float32 [rows, V], each row's sum 1.
    """
    if Filters.at_once is not None and not filters.one_after_another:
        return Filters.at_once(probs, filters.top_ks, filters.top_ps, filters.min_ps)
    kept = probs
    if filters.top_ks is not None:
        kept = top_k_renorm(probs, filters.top_ks)
    if filters.top_ps is not None:
        nucleus = top_p_renorm(probs, filters.top_ps)
        if filters.top_ks is None:
            kept = nucleus
        else:
            both = torch.where(nucleus > 0, kept, 0.0)
            # A greedy row's token may be another one of equal maxima than top-p has kept.
            both = torch.where(both.sum(1, keepdim=True) > 0, both, kept)
            if filters.one_after_another and filters.min_ps is not None:
                in_turn = top_p_renorm(kept, filters.top_ps)
                both = torch.where(filters.min_ps.unsqueeze(1) > 0, in_turn, both)
            kept = both / both.sum(1, keepdim=True)
    if filters.min_ps is not None:
        limit = kept.amax(1, keepdim=True) * filters.min_ps.unsqueeze(1)
        kept = torch.where(kept >= limit, kept, 0.0)
        kept = kept / kept.sum(1, keepdim=True)
    return kept
