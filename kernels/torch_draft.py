"""Draft logits on the CPU: each language's head rows copied once, as their product likes them.

Selecting the rows at every step is slower than scoring the full head on a CPU (measured: 0.7x at
D 576, 32k of 49k ids), hence copies, the full vocabulary's among them. Products are exact to
float32 as in the Triton kernel. By themselves the kernels have oneDNN's, whose blocked layout takes
two thirds of the time of ``mm`` from 8 rows on (16k x 576 on one Zen 3 core: 3.9 against 5.8 ms for
8 rows, equal for 1); the CPU platform puts its own in its place (``TorchDraftLogits.packer``).

``languages`` is read on the host, which on the CPU costs nothing and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastmtp_kernels.draft_logits import DraftLogits, DraftOptions, DraftTokens
from fastmtp_kernels.keys import decode_keys
from fastmtp_kernels.slots import DraftSlots


class _PackedList(NamedTuple):
    """One language's ids, int64 [n], ascending, and the product with their head rows."""

    ids: Tensor
    product: Callable[[Tensor], Tensor] | None


def onednn_product(rows: Tensor) -> Callable[[Tensor], Tensor]:
    """Copy head rows [n, D]; the product of float32 hidden states [B, D] with them, [B, n]."""
    weights = torch.ops.mkldnn._reorder_linear_weight(rows.float(), None)
    return lambda hidden: torch.ops.mkldnn._linear_pointwise(hidden, weights, None, "none", [], "")


def torch_best(scores: Tensor, k: int, log_sum_exp: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest of scores [rows, n], which are overwritten; the first of equals first.

    NaN counts as minus infinity.

    Returns:
        values [rows, k], places int64 [rows, k], log-sum-exp [rows] (empty if not asked for).
    """
    scores = scores.masked_fill_(scores.isnan(), -torch.inf)
    log_sum = scores.logsumexp(dim=1) if log_sum_exp else scores.new_empty(0)
    values, places = [], []
    for _ in range(k):
        best, place = scores.max(dim=1)  # the first of equals, hence the lowest id
        values.append(best)
        places.append(place)
        scores.scatter_(1, place[:, None], -torch.inf)
    return torch.stack(values, dim=1), torch.stack(places, dim=1), log_sum


class TorchDraftLogits(DraftLogits):
    """``DraftLogits`` for CPU serving; also serves a rank whose shard holds none of a list."""

    # How head rows are copied and multiplied, and how the best are found.
    packer = staticmethod(onednn_product)
    chooser = staticmethod(torch_best)

    def __init__(self, head: Tensor, slots: DraftSlots, options: DraftOptions) -> None:
        """Copy each language's head rows."""
        super().__init__(head, slots, options)
        self.refresh()

    def refresh(self) -> None:
        """Copy the head rows again."""
        self._lists = [self._pack(language) for language in range(len(self.slots.languages))]

    @torch.no_grad()
    def _pack(self, language: int) -> _PackedList:
        slots = self.slots.slots_of(language)
        rows = self.head[self.slots.head_rows[slots].long()]
        return _PackedList(
            self.slots.token_ids[slots].long(), self.packer(rows) if len(rows) else None
        )

    def warm_up(self) -> None:
        """Nothing to compile."""

    @torch.no_grad()
    def __call__(self, hidden: Tensor, languages: Tensor) -> DraftTokens:
        """See ``DraftLogits``. Rows of one language share a matrix product."""
        self._check_batch(hidden.shape[0])
        hidden = hidden.to(self.head.dtype).float()
        groups = _rows_by_language(languages)
        if len(groups) == 1:
            return self._over_one(next(iter(groups)), hidden)
        merged = self._nothing(hidden.shape[0])
        for language, rows in groups.items():
            index = torch.tensor(rows)
            found = self._over_one(language, hidden[index])
            merged.ids[index], merged.scores[index] = found.ids, found.scores
            if merged.log_sum_exp is not None:
                merged.log_sum_exp[index] = found.log_sum_exp
        return merged

    def _nothing(self, rows: int) -> DraftTokens:
        """What rows without candidates get."""
        options, shape = self.options, (rows, self.options.top_k)
        return DraftTokens(
            torch.full(shape, options.fallback_id),
            torch.full(shape, -torch.inf),
            torch.full((rows,), -torch.inf) if options.log_sum_exp else None,
        )

    def _over_one(self, language: int, hidden: Tensor) -> DraftTokens:
        """The best tokens of float32 hidden states [rows, D], all over the list of one language."""
        options = self.options
        if not 0 <= language < len(self._lists) or len(self._lists[language].ids) == 0:
            return self._nothing(len(hidden))
        packed = self._lists[language]
        assert packed.product is not None
        logits = packed.product(hidden)
        if options.scale != 1:
            logits *= options.scale
        if options.softcap:
            logits.div_(options.softcap).tanh_().mul_(options.softcap)
        scores, places, log_sum_exp = self.chooser(logits, options.top_k, options.log_sum_exp)
        # The ids ascend, so the first of equal scores has the lowest.
        ids = torch.where(scores > -torch.inf, packed.ids[places], options.fallback_id)
        return DraftTokens(ids, scores, log_sum_exp if options.log_sum_exp else None)

    @torch.no_grad()
    def merge(self, keys: Tensor, log_sum_exp: Tensor | None = None) -> DraftTokens:
        """See ``DraftLogits``."""
        best = keys.movedim(0, 1).flatten(1).topk(self.options.top_k).values
        ids, scores = decode_keys(best, self.options.fallback_id)
        total = None if log_sum_exp is None else log_sum_exp.logsumexp(dim=0)
        return DraftTokens(ids, scores, total, best)


def _rows_by_language(languages: Tensor) -> dict[int, list[int]]:
    """Group the batch's rows by language."""
    groups: dict[int, list[int]] = {}
    for row, language in enumerate(languages.tolist()):
        groups.setdefault(language, []).append(row)
    return groups
