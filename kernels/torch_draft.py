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

from fastmtp_kernels.draft_logits import NO_TOKEN, DraftLogits, DraftOptions, DraftTokens
from fastmtp_kernels.keys import decode_keys, encode_keys
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


def torch_gathered(
    hidden: Tensor,
    head: Tensor,
    own_ids: Tensor,
    request_slots: Tensor,
    languages: Tensor,
    shard: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Products of hidden states with the head rows of each one's own tokens.

    Args:
        hidden: float32 [B, D].
        head: [V, D], the rows of the token ids from ``shard[0]`` to ``shard[1]``.
        own_ids: int32 [request slots, languages, N], see ``DraftLogits``.
        request_slots: integer [B].
        languages: integer [B], out of range for no tokens.
        shard: see ``DraftSlots``.

    Returns:
        products float32 [B, N] and token ids int64 [B, N], below 0 where there is no token of this
        rank; the product is anything there.
    """
    listed = (languages >= 0) & (languages < own_ids.shape[1])
    ids = own_ids[request_slots, torch.where(listed, languages, 0)].long()
    ids = torch.where(listed[:, None] & (ids >= shard[0]) & (ids < shard[1]), ids, NO_TOKEN)
    rows = head[(ids - shard[0]).clamp(min=0)].float()
    return (rows @ hidden.unsqueeze(2)).squeeze(2), ids


def torch_joined(
    scores: Tensor, ids: Tensor, log_sum_exp: Tensor, own_scores: Tensor, own_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The best of two groups of candidates, by the rules of ``draft_logits``.

    Args:
        scores: float32 [B, k], the best of the list.
        ids: int64 [B, k].
        log_sum_exp: float32 [B] over the list, empty if not asked for.
        own_scores: float32 [B, n], overwritten.
        own_ids: int64 [B, n], below 0 where there is none.

    Returns:
        scores, ids and log-sum-exp over both.
    """
    none = own_scores.isnan() | (own_ids < 0)
    own_scores = own_scores.masked_fill_(none, -torch.inf)
    keys = torch.cat((encode_keys(scores, ids), encode_keys(own_scores, own_ids.clamp(min=0))), 1)
    best = keys.topk(scores.shape[1]).values
    if len(log_sum_exp):
        log_sum_exp = torch.logaddexp(log_sum_exp, own_scores.logsumexp(dim=1))
    # Where nothing is a candidate the list's fallback id stays.
    best_ids, best_scores = decode_keys(best, 0)
    return best_scores, torch.where(best_scores > -torch.inf, best_ids, ids), log_sum_exp


class TorchDraftLogits(DraftLogits):
    """``DraftLogits`` for CPU serving; also serves a rank whose shard holds none of a list."""

    # How head rows are copied and multiplied, and how the best are found; the same for own tokens,
    # whose rows are read from the live head.
    packer = staticmethod(onednn_product)
    chooser = staticmethod(torch_best)
    gatherer = staticmethod(torch_gathered)
    joiner = staticmethod(torch_joined)

    def __init__(
        self,
        head: Tensor,
        slots: DraftSlots,
        options: DraftOptions,
        own_ids: Tensor | None = None,
    ) -> None:
        """Copy each language's head rows."""
        super().__init__(head, slots, options, own_ids)
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
    def __call__(
        self, hidden: Tensor, languages: Tensor, request_slots: Tensor | None = None
    ) -> DraftTokens:
        """See ``DraftLogits``. Rows of one language share a matrix product."""
        self._check_batch(hidden.shape[0])
        hidden = hidden.to(self.head.dtype).float()
        found = self._over_lists(hidden, languages)
        if self.own_ids is None:
            return found
        assert request_slots is not None
        return self._with_own(found, hidden, languages, request_slots)

    def _over_lists(self, hidden: Tensor, languages: Tensor) -> DraftTokens:
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
        logits = self._scaled(packed.product(hidden))
        scores, places, log_sum_exp = self.chooser(logits, options.top_k, options.log_sum_exp)
        # The ids ascend, so the first of equal scores has the lowest.
        ids = torch.where(scores > -torch.inf, packed.ids[places], options.fallback_id)
        return DraftTokens(ids, scores, log_sum_exp if options.log_sum_exp else None)

    def _with_own(
        self, found: DraftTokens, hidden: Tensor, languages: Tensor, request_slots: Tensor
    ) -> DraftTokens:
        """The best tokens of float32 hidden states among what was found and own tokens."""
        assert self.own_ids is not None
        shard = self.slots.shard
        if shard[0] == shard[1]:
            return found
        scores, ids = self.gatherer(
            hidden, self.head, self.own_ids, request_slots, languages, shard
        )
        scores = self._scaled(scores)
        before = found.scores.new_empty(0) if found.log_sum_exp is None else found.log_sum_exp
        best, best_ids, total = self.joiner(found.scores, found.ids, before, scores, ids)
        return DraftTokens(best_ids, best, None if found.log_sum_exp is None else total)

    def _scaled(self, logits: Tensor) -> Tensor:
        """What the target makes of its logits, in place."""
        options = self.options
        if options.scale != 1:
            logits *= options.scale
        if options.softcap:
            logits.div_(options.softcap).tanh_().mul_(options.softcap)
        return logits

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
