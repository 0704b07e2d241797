"""A request's `sampling_seed`: its token at a position is a function of the distribution, the seed
and the position alone, whatever else is served, drafted or verified.

The function is that of SGLang's --enable-deterministic-inference (Gumbel-max over a hash of seed,
position and place in the distribution), which SGLang uses without speculation and for whole batches
only. `install` lets the batches of this process carry the seeds of their requests, and SGLang's
sampler obey them; verification asks `draw` for what each row's token must be. Without a seed in a
batch nothing is computed, and nothing ever waits for the device.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from sglang.srt.layers import sampler
from sglang.srt.layers.sampler import Sampler
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from sglang.srt.sampling.sampling_params import TOP_K_ALL
from torch import Tensor

from fastmtp_sglang.serving.verification.tree_links import parents

# What SGLang's deterministic inference takes for a request without a seed.
DETERMINISTIC_SEED = 42
# Modules that bind the class under its own name.
_USERS = (
    "sglang.srt.managers.schedule_batch",
    "sglang.srt.managers.scheduler",
    "sglang.srt.disaggregation.decode_schedule_batch_mixin",
)


class Seed(NamedTuple):
    """How one request samples.

    Attributes:
        value: the seed, a signed 64-bit number.
        filtered: whether it has a top-k, top-p or min-p. SGLang hashes the rank of a token among
            the sorted ones then, and its id otherwise.
        min_p: whether it has a min-p.
    """

    value: int
    filtered: bool
    min_p: bool


@dataclasses.dataclass(frozen=True)
class Seeded:
    """The seeded requests of a batch that sample in the same way.

    Attributes:
        requests: int64 [S], their indices in the batch.
        seeds: int64 [S].
        filtered: of all of them.
        min_p: of any of them.
    """

    requests: Tensor
    seeds: Tensor
    filtered: bool
    min_p: bool


@dataclasses.dataclass
class SeededBatchInfo(SamplingBatchInfo):
    """SGLang's sampling parameters of a batch, with its requests' seeds.

    Attributes:
        seed_of: of each request, None where it has none or is greedy.
        seeded: those that have one.
    """

    seed_of: Sequence[Seed | None] = ()
    seeded: tuple[Seeded, ...] = ()

    def adjusted_from_schedule_batch(self, batch: Any, vocab_size: int) -> None:
        """Take the seeds of the requests that SGLang has made this batch of."""
        default = None if self.sampling_seed is None else DETERMINISTIC_SEED
        self._take([_seed_of(request.sampling_params, default) for request in batch.reqs])

    def adjusted_filter_batch(self, keep_indices: list[int], keep_indices_device: Tensor) -> None:
        """Follow SGLang when requests leave the batch."""
        self._take([self.seed_of[index] for index in keep_indices])

    def adjusted_merge_batch(self, other: SeededBatchInfo) -> None:
        """Follow SGLang when requests join the batch."""
        self._take([*self.seed_of, *other.seed_of])

    def _take(self, seed_of: list[Seed | None]) -> None:
        self.seed_of = seed_of
        self.seeded = ()
        if any(seed_of):
            kinds = (_alike(seed_of, filtered, self.device) for filtered in (False, True))
            self.seeded = tuple(kind for kind in kinds if kind is not None)

    @property
    def all_seeded(self) -> bool:
        """Whether no request of the batch draws at random."""
        return None not in self.seed_of


def _seed_of(params: Any, default: int | None) -> Seed | None:
    value = default if params.sampling_seed is None else params.sampling_seed
    if value is None or params.top_k <= 1:
        return None
    min_p = params.min_p > 0
    return Seed(value, min_p or params.top_p != 1.0 or params.top_k != TOP_K_ALL, min_p)


def _alike(seed_of: Iterable[Seed | None], filtered: bool, device: Any) -> Seeded | None:
    found = [(i, s) for i, s in enumerate(seed_of) if s is not None and s.filtered == filtered]
    if not found:
        return None
    pinned = torch.device(device).type == "cuda"
    numbers = torch.tensor([(i, s.value) for i, s in found], pin_memory=pinned)
    requests, seeds = numbers.to(device, non_blocking=True).unbind(1)
    return Seeded(requests, seeds.contiguous(), filtered, any(s.min_p for _, s in found))


def draw(
    seeded: Seeded,
    probs: Tensor,
    positions: Tensor,
    info: SamplingBatchInfo,
    logprobs: Tensor | None = None,
) -> Tensor:
    """Draw the token after each row of seeded requests, as SGLang does for a lone row.

    Args:
        seeded: S requests of the batch.
        probs: float32 [B, n, V], each row's softmax at its temperature, not filtered.
        positions: integer [B, n], the place of the token that a row follows.
        info: the filters of the batch.
        logprobs: bfloat16 [B, n, V], what requests without a filter are drawn from instead with
            --rl-on-policy-target.

    Returns:
        int64 [S, n].
    """
    chosen, n = seeded.requests, probs.shape[1]
    seeds = seeded.seeds.repeat_interleave(n)
    places = positions.index_select(0, chosen).flatten()
    if not seeded.filtered and logprobs is not None:
        rows = logprobs.index_select(0, chosen).flatten(0, 1)
        return sampler.multinomial_with_seed(rows, seeds, places).view(-1, n)
    rows = probs.index_select(0, chosen).flatten(0, 1)
    if not seeded.filtered:
        return sampler.sampling_from_probs_torch(rows, seeds, places).view(-1, n).long()

    def of(values: Tensor) -> Tensor:
        return values.index_select(0, chosen).repeat_interleave(n)

    min_ps = of(info.min_ps)
    if seeded.min_p:
        # SGLang refuses it beside a seed, for want of a renormalization that an argmax needs not.
        least = rows.amax(1, keepdim=True) * min_ps.unsqueeze(1)
        rows.masked_fill_(rows < least, 0.0)
    tokens = sampler.top_k_top_p_min_p_sampling_from_probs_torch(
        *(rows, of(info.top_ks), of(info.top_ps), min_ps),
        need_min_p_sampling=False,
        sampling_seed=seeds,
        positions=places,
    )
    return tokens.view(-1, n).long()


@dataclasses.dataclass(frozen=True)
class SeededRows:
    """The rows that are verified of a batch with seeded requests.

    Attributes:
        info: of the batch.
        positions: integer [B, n], the place of each row's token.
        logits: float [B, n, V] with --rl-on-policy-target; they may change until `tokens`.
    """

    info: SeededBatchInfo
    positions: Tensor
    logits: Tensor | None

    def tokens(
        self, probs: Tensor, candidates: Tensor, links: tuple[Tensor, Tensor], depth: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Draw what follows each row that verification can reach.

        Of a tree these are at most K + 1 rows a request, each a child of the one before it.

        Args:
            probs: float32 [B, n, V], that nothing has filtered.
            candidates: int64 [B, n], tokens of the rows.
            links: int64 [B, n] twice, as `tree_links.parents` takes them.
            depth: K + 1.

        Returns:
            Of requests that sample alike, their indices, int64 [S], and their tokens [S, n]; 0 for
            a row that is not reached.
        """
        logprobs = None
        if self.logits is not None:
            # As a trainer in bfloat16 computes it, and so SGLang's sampler.
            scaled = self.logits.bfloat16().div(self.info.temperatures.unsqueeze(2)).bfloat16()
            logprobs = torch.log_softmax(scaled, dim=-1)
        tree = None
        if candidates.shape[1] > depth:
            tree = candidates, parents(*links)
        return [
            (
                kind.requests,
                draw(kind, probs, self.positions, self.info, logprobs)
                if tree is None
                else self._down(kind, probs, *tree, depth, logprobs),
            )
            for kind in self.info.seeded
        ]

    def _down(
        self,
        kind: Seeded,
        probs: Tensor,
        candidates: Tensor,
        parent: Tensor,
        depth: int,
        logprobs: Tensor | None,
    ) -> Tensor:
        """The tokens [S, n] of a walk down each tree, from the root to `depth` rows."""
        request = torch.arange(len(probs), device=probs.device)
        row = torch.zeros_like(request)
        tokens = torch.zeros_like(candidates)
        for _ in range(depth):
            here = request, row
            at = [x if x is None else x[here].unsqueeze(1) for x in (probs, logprobs)]
            drawn = draw(kind, at[0], self.positions[here].unsqueeze(1), self.info, at[1])
            tokens[kind.requests, row[kind.requests]] = drawn.squeeze(1)
            right = (parent == row.unsqueeze(1)) & (candidates == tokens[here].unsqueeze(1))
            # Without such a child the walk stays, and draws the same again.
            row = torch.where(right.any(1), right.int().argmax(1), row)
        return tokens[kind.requests]


def make_certain(requests: Tensor, tokens: Tensor, probs: Tensor, coins: Tensor) -> None:
    """Let SGLang's operators accept these tokens and no others, whatever was drafted and how.

    Args:
        requests: int64 [S], indices of requests.
        tokens: int64 [S, n], what must follow each of their rows.
        probs: float32 [B, n, V], the target's; their rows are rewritten.
        coins: float32 [B, n], in [0, 1); theirs are rewritten.
    """
    certain = probs.new_zeros(*tokens.shape, probs.shape[2]).scatter_(2, tokens.unsqueeze(2), 1.0)
    probs.index_copy_(0, requests, certain)
    # Above 0, at which SGLang's operators accept a draft of probability 0, and below 1.
    coins.index_fill_(0, requests, 0.5)


def install() -> None:
    """Let batches carry seeds and SGLang's sampler obey them, in this process; idempotent."""
    for name in _USERS:
        vars(importlib.import_module(name))["SamplingBatchInfo"] = SeededBatchInfo
    stock = Sampler._sample_from_probs
    if stock.__module__ == __name__:
        return

    def sample(
        self: Sampler, probs: Tensor, sampling_info: Any, positions: Tensor, simple: bool
    ) -> tuple[Tensor, Any]:
        seeded = getattr(sampling_info, "seeded", ())
        if not seeded:
            return stock(self, probs, sampling_info, positions, simple)
        # SGLang's own would hash ids or ranks as the other requests of the batch have it.
        others = dataclasses.replace(sampling_info, sampling_seed=None)
        tokens, mask = stock(self, probs, others, positions, simple)
        for kind in seeded:
            own = draw(kind, probs.unsqueeze(1), positions.unsqueeze(1), sampling_info)
            tokens.index_copy_(0, kind.requests, own.squeeze(1).to(tokens.dtype))
        if mask is not None:
            mask = mask._replace(selected_weight=None)
        return tokens, mask

    Sampler._sample_from_probs = sample
