"""Exact penalties under speculation: frequency, presence, repetition and `min_new_tokens`.

A verified row gets the penalties that the request would have after the drafts that lead to it, and
every accepted token counts: the arithmetic of `sglang.srt.sampling.penaltylib` on output tokens
alone, bit for bit what SGLang computes token by token without speculation. (That is SGLang with
--disable-overlap-schedule. With overlapped scheduling its own penalties lag a token behind, count
the last prompt token, or a token twice, depending on what else is being served.) Where a request
both subtracts and scales, it scales last, as SGLang does with overlapped scheduling; without, the
order is that of a set of classes and changes from one start of SGLang to the next.

State is one row per request that uses penalties, and moves with the accepted tokens by device
operations of fixed shape only: nothing waits for the device. All calls are made on SGLang's forward
stream, whose order makes the reuse of rows safe. SGLang's own penalizers, which would hold a row
for every request of a batch, are switched off by `NoPenalizers`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from sglang.srt.sampling.penaltylib.min_new_tokens import BatchedMinNewTokensPenalizer
from sglang.srt.sampling.penaltylib.orchestrator import BatchedPenalizerOrchestrator
from sglang.srt.sampling.penaltylib.repetition_penalty import apply_scaling_penalties

from fastmtp_sglang.serving.verification.tree_links import parents

if TYPE_CHECKING:
    from torch import Tensor

# The value of each parameter that asks for nothing.
NEUTRAL = {
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
}


class NoPenalizers(BatchedPenalizerOrchestrator):
    """Takes the place of SGLang's orchestrator of penalties in each batch, and has none."""

    def __init__(self, vocab_size: int, batch: Any, penalizers: set[type]) -> None:
        super().__init__(vocab_size, batch, penalizers=set())


@dataclass(frozen=True)
class Selection:
    """The requests of a batch that use penalties.

    Attributes:
        batch: int64 [P], their indices in the batch.
        rows: int64 [P], their rows of the state.
        repetition: whether one of them has a repetition penalty.
    """

    batch: Tensor
    rows: Tensor
    repetition: bool


class Paths(NamedTuple):
    """The drafts that lead to each verified row.

    Attributes:
        drafts: int64 [B, n, K], in their order; of a shorter path the last entries.
        lengths: int64 [B, n], 0..K.
    """

    drafts: Tensor
    lengths: Tensor

    @staticmethod
    def of(tokens: Tensor, next_token: Tensor, next_sibling: Tensor, num_steps: int) -> Paths:
        """Follow the links of a tree; a chain is one too.

        Args:
            tokens: int64 [B, n], tokens of the rows; row 0 is the last token that was decided.
            next_token: int64 [B, n], each row's first child, -1 for none.
            next_sibling: int64 [B, n], the next child of the same parent, -1 for none.
            num_steps: K.
        """
        parent = parents(next_token, next_sibling).clamp(min=0)
        bs, n = tokens.shape
        drafts, lengths = tokens.new_empty(bs, n, num_steps), torch.zeros_like(tokens)
        place = torch.arange(n, device=tokens.device).expand(bs, n)
        for step in reversed(range(num_steps)):
            drafts[:, :, step] = tokens.gather(1, place)
            lengths += place > 0
            place = parent.gather(1, place)
        return Paths(drafts, lengths)


class Penalties:
    """What the requests that use penalties have produced so far."""

    def __init__(self, vocab_size: int, device: torch.device | str) -> None:
        """Start without any request, and without memory for one."""
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self._row_of: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._selected: tuple[Sequence[Any], Selection | None] = ([], None)
        self._scale: Callable[[Tensor, Tensor], None] = apply_scaling_penalties
        if self.device.type == "cpu":
            # Compiled by SGLang, which takes a C++ compiler and seconds, and gives the same bits.
            self._scale = getattr(self._scale, "_torchdynamo_orig_callable", self._scale)
        self._allocate(0)
        # Token ids that may not come before `min_new_tokens`; a row with fewer repeats its first.
        self._stops = torch.zeros(0, 1, dtype=torch.int64, device=self.device)

    def _allocate(self, rows: int) -> None:
        def per_row(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros((rows, *shape), dtype=dtype, device=self.device)

        # Summed up token by token, as SGLang does: n * penalty is rounded differently.
        self._frequency = per_row(torch.float32, self.vocab_size)
        self._seen = per_row(torch.bool, self.vocab_size)
        # Frequency, presence and repetition penalty.
        self._strength = per_row(torch.float32, 3)
        self._length = per_row(torch.int64)
        self._min_length = per_row(torch.int64)

    def start(self, requests: Sequence[Any]) -> None:
        """Count what requests have produced so far, as their prefill begins.

        Args:
            requests: SGLang's `Req` objects, whose `output_ids` are complete: nothing of theirs is
                in flight. Those without penalties are ignored.
        """
        requests = [r for r in requests if _uses_penalties(r.sampling_params)]
        if not requests:
            return
        rows = self._rows_for(requests)
        stops = [_stop_ids(r, self.vocab_size) for r in requests]
        self._widen_stops(max(map(len, stops)))
        width = self._stops.shape[1]
        strengths, lengths, limits, padded = [], [], [], []
        for request, stop in zip(requests, stops, strict=True):
            params = request.sampling_params
            strengths.append(
                (params.frequency_penalty, params.presence_penalty, params.repetition_penalty)
            )
            lengths.append(len(request.output_ids))
            limits.append(params.min_new_tokens if stop else 0)
            padded.append([*stop, *(stop[:1] or [0]) * (width - len(stop))])
        index = self._upload(rows)
        self._strength[index] = self._upload(strengths, torch.float32)
        self._length[index] = self._upload(lengths)
        self._min_length[index] = self._upload(limits)
        self._stops[index] = self._upload(padded)
        self._frequency[index] = 0.0
        self._seen[index] = False
        for row, request in zip(rows, requests, strict=True):
            if len(request.output_ids):  # it was retracted and comes back
                output = self._upload(request.output_ids)
                penalty = self._strength[row, 0].expand(len(output))
                self._frequency[row].index_add_(0, output, penalty)
                self._seen[row].index_fill_(0, output, True)

    def select(self, requests: Sequence[Any]) -> Selection | None:
        """Find the requests that use penalties in a batch; None if there are none.

        Args:
            requests: the list `reqs` of SGLang's batch, which SGLang never changes in place.
        """
        if self._selected[0] is requests:
            return self._selected[1]
        found = [(i, r) for i, r in enumerate(requests) if _uses_penalties(r.sampling_params)]
        # Prefilled by another server: its first token is known already.
        self.start([r for _, r in found if r not in self._row_of])
        selection = None
        if found:
            selection = Selection(
                batch=self._upload([i for i, _ in found]),
                rows=self._upload([self._row_of[r] for _, r in found]),
                repetition=any(
                    r.sampling_params.repetition_penalty != NEUTRAL["repetition_penalty"]
                    for _, r in found
                ),
            )
        self._selected = (requests, selection)
        return selection

    def apply(self, selection: Selection, logits: Tensor, paths: Paths) -> None:
        """Penalize the selected requests' logits in place.

        Args:
            selection: of the batch.
            logits: float [B, n, vocab_size].
            paths: what leads to each row.
        """
        rows, batch = selection.rows, selection.batch
        frequency, presence, repetition = self._strength[rows].unsqueeze(2).unbind(1)
        stops = self._stops[rows]
        missing = (self._min_length[rows] - self._length[rows]).unsqueeze(1)
        drafts, lengths = paths.drafts[batch], paths.lengths[batch].unsqueeze(2)
        for row in range(logits.shape[1]):
            total, seen = self._frequency[rows], self._seen[rows]
            for step in range(drafts.shape[2]):
                counts = lengths[:, row] >= drafts.shape[2] - step
                draft = drafts[:, row, step].unsqueeze(1)
                total.scatter_add_(1, draft, torch.where(counts, frequency, 0.0))
                seen.scatter_(1, draft, seen.gather(1, draft) | counts)
            scores = logits[batch, row]
            scores.add_(-total - torch.where(seen, presence, 0.0))
            barred = missing > lengths[:, row]
            stopping = torch.where(barred, -torch.inf, scores.gather(1, stops))
            scores.scatter_(1, stops, stopping)
            if selection.repetition:
                self._scale(scores, torch.where(seen, repetition, 1.0))
            logits[batch, row] = scores

    def count(self, selection: Selection, tokens: Tensor, accept_lens: Tensor) -> None:
        """Count what was accepted.

        Args:
            selection: of the batch.
            tokens: integer [B, n].
            accept_lens: integer [B], how many of each row's tokens count, at least 1.
        """
        rows = selection.rows
        tokens = tokens[selection.batch].long()
        accepted = accept_lens[selection.batch].long()
        frequency = self._strength[rows, 0]
        for position in range(tokens.shape[1]):
            counts = position < accepted
            # Of different rows, so that no entry is met twice in one call.
            entries = rows * self.vocab_size + tokens[:, position]
            self._frequency.view(-1).index_add_(0, entries, torch.where(counts, frequency, 0.0))
            seen = self._seen.view(-1)
            seen[entries] = seen[entries] | counts
        self._length[rows] += accepted

    def _rows_for(self, requests: Sequence[Any]) -> list[int]:
        """Give each request a row, its own if it has one, and more memory where rows run out."""
        self._selected = ([], None)
        taken = {row for request, row in self._row_of.items() if not request.finished()}
        free = [row for row in range(len(self._length)) if row not in taken]
        new = [request for request in requests if request not in self._row_of]
        if len(new) > len(free):
            self._grow(2 * (len(taken) + len(new)))
            free = [row for row in range(len(self._length)) if row not in taken]
        for request in [r for r in self._row_of if r.finished()]:
            del self._row_of[request]
        self._row_of.update(zip(new, free, strict=False))
        return [self._row_of[request] for request in requests]

    def _grow(self, rows: int) -> None:
        names = ("_frequency", "_seen", "_strength", "_length", "_min_length")
        before = {name: getattr(self, name) for name in names}
        self._allocate(rows)
        for name, old in before.items():
            getattr(self, name)[: len(old)] = old
        extra = self._stops.new_zeros(rows - len(self._stops), self._stops.shape[1])
        self._stops = torch.cat((self._stops, extra))

    def _widen_stops(self, width: int) -> None:
        extra = width - self._stops.shape[1]
        if extra > 0:
            self._stops = torch.cat((self._stops, self._stops[:, :1].repeat(1, extra)), dim=1)

    def _upload(self, values: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        pinned = torch.tensor(values, dtype=dtype, pin_memory=self.device.type == "cuda")
        return pinned.to(self.device, non_blocking=True)


class PrefillPenalties:
    """Stands for SGLang's orchestrator where it samples the first token after a prefill."""

    is_required = True

    def __init__(self, penalties: Penalties, selection: Selection) -> None:
        self._penalties = penalties
        self._selection = selection

    def apply(self, logits: Tensor) -> None:
        """Penalize logits [B, vocab_size] in place."""
        drafts = torch.empty(len(logits), 1, 0, dtype=torch.int64, device=logits.device)
        paths = Paths(drafts, drafts.sum(2))
        self._penalties.apply(self._selection, logits.unsqueeze(1), paths)


@dataclass
class _Batch:
    """The part of SGLang's batch that its penalizers read, on the CPU."""

    reqs: list[Any]
    device: str = "cpu"


def _uses_penalties(params: Any) -> bool:
    return any(getattr(params, name) != neutral for name, neutral in NEUTRAL.items())


def _stop_ids(request: Any, vocab_size: int) -> list[int]:
    """The token ids that `min_new_tokens` bars, as SGLang's penalizer collects them."""
    if request.sampling_params.min_new_tokens <= 0:
        return []
    batch = _Batch([request])
    stock = BatchedPenalizerOrchestrator(vocab_size, batch, {BatchedMinNewTokensPenalizer})
    barred = stock.penalizers[BatchedMinNewTokensPenalizer].stop_token_penalties[0]
    return barred.isneginf().nonzero().flatten().tolist()
