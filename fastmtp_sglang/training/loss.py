"""Loss of every step of a chain, without ever holding the logits of a whole batch.

Cross-entropy with the target's own token, Kullback-Leibler divergence from the target's
distribution, or a weighted sum. Labels are taken in chunks: logits of a chunk, its loss, and the
gradient that flows back into the hidden states are computed together in the forward pass (the
output layer is frozen, so nothing else needs a gradient) and the logits are dropped. Compared with
recomputing logits in the backward pass this saves one of three products. All K steps share the
target's distribution of a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from fastmtp_sglang.training.packing import Document

# Logits of one chunk, in elements: 32 MiB in float32. The cost per label is flat from there on.
_CHUNK_ELEMENTS = 8 * 1024**2


@dataclass(frozen=True)
class OutputLayer:
    """The frozen output layer, maybe restricted to the rows of a draft vocabulary.

    Attributes:
        weight: [V', D].
        local_ids: int64 [V], row of `weight` of each token id, or -1; None for all rows.
        ids: int64 [V'], token id of each row; None for all rows.
    """

    weight: torch.Tensor
    local_ids: torch.Tensor | None = None
    ids: torch.Tensor | None = None

    @classmethod
    def restricted(cls, weight: torch.Tensor, ids: torch.Tensor) -> OutputLayer:
        """Keep the rows `ids` (int64 [V'], sorted unique) of `weight` [V, D]."""
        local_ids = torch.full((len(weight),), -1, device=weight.device)
        local_ids[ids] = torch.arange(len(ids), device=weight.device)
        return cls(weight[ids].contiguous(), local_ids, ids)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.weight.device

    def __str__(self) -> str:
        return f"{len(self.weight):,} ids"

    def with_lists(self, document: Document) -> Document:
        """As it is: all of its tokens are scored over the same rows (see `own_lists`)."""
        return document

    def to_train(self, document: Document) -> Document:
        """Do not count the tokens that have no row."""
        if self.ids is None:
            return document
        scored = self.to_local(document.input_ids.to(self.device)).cpu() >= 0
        return replace(document, counted=document.counted & scored)

    def parts(self, batch: dict[str, torch.Tensor]) -> Iterator[tuple[OutputLayer, slice]]:
        """All labels of a packed batch, over these rows."""
        yield self, slice(None)

    def to_local(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of token ids."""
        return ids if self.local_ids is None else self.local_ids[ids]

    def to_ids(self, rows: torch.Tensor) -> torch.Tensor:
        """Token ids of rows."""
        return rows if self.ids is None else self.ids[rows]

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """float32 or float64 [n, V'] of hidden states [n, D]; scored in the weight's dtype."""
        logits = states.to(self.weight.dtype) @ self.weight.T
        return logits if logits.dtype == torch.float64 else logits.float()

    def chunk(self) -> int:
        """How many labels make one chunk."""
        return max(1, _CHUNK_ELEMENTS // len(self.weight))

    def argmax(self, states: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Token ids int64 [n] that score highest for hidden states [n, D] of a batch."""
        chunks = [self.logits(chunk).argmax(-1) for chunk in states.split(self.chunk())]
        return self.to_ids(torch.cat(chunks) if chunks else states.new_zeros(0, dtype=torch.int64))


@dataclass(frozen=True)
class LossWeights:
    """What a label costs: `cross_entropy` * CE + `kl` * KL(target || head).

    `temperature` divides the target's logits in KL: 1 is its distribution, less is sharper.
    """

    cross_entropy: float = 1.0
    kl: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Labels:
    """What the chains of a batch are to draft.

    Attributes:
        rows: int64 [K, L], anchor whose step k predicts the label, or -1 for none.
        ids: int64 [L], rows of the output layer; none is -1.
        target_states: [L, D], the target's hidden states that predict the labels; only for KL.
    """

    rows: torch.Tensor
    ids: torch.Tensor
    target_states: torch.Tensor | None = None


# The signature of `chain_loss`.
ChainLoss = Callable[
    [torch.Tensor, Labels, OutputLayer, LossWeights], tuple[torch.Tensor, torch.Tensor]
]


def step_weights(beta: float, num_steps: int) -> torch.Tensor:
    """alpha_k = beta^(k-1) / sum_j beta^(j-1) of FastMTP (arXiv 2509.18362, equation 2), [K]."""
    weights = beta ** torch.arange(num_steps, dtype=torch.float64)
    return weights / weights.sum()


def chain_loss(
    states: torch.Tensor, labels: Labels, output: OutputLayer, weights: LossWeights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum the loss of each step over its labels.

    Args:
        states: [K, N, D], the head's output of each step at each anchor.
        labels: L of them.
        output: the frozen output layer.
        weights: how the two losses are mixed.

    Returns:
        Sums [K], float32 (float64 for float64 input), differentiable with respect to `states` only,
        and int64 [K], how often the label scored highest. No label at all gives zeros.
    """
    return _Chunked.apply(states, labels, output, weights)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, labels: Labels, output: OutputLayer, weights: LossWeights
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.float64 if states.dtype == torch.float64 else torch.float32
        steps = len(states)
        sums = torch.zeros(steps, dtype=wide, device=states.device)
        correct = torch.zeros(steps, dtype=torch.int64, device=states.device)
        gradient = torch.zeros_like(states) if ctx.needs_input_grad[0] else None
        size = output.chunk()
        for start in range(0, len(labels.ids), size):
            part = slice(start, start + size)
            teacher = None
            if weights.kl:
                assert labels.target_states is not None
                teacher = _Teacher(output.logits(labels.target_states[part]) / weights.temperature)
            for step in range(steps):
                rows = labels.rows[step, part]
                chosen = (rows >= 0).nonzero().squeeze(1)
                rows = rows[chosen]
                logits = output.logits(states[step][rows])
                loss, hits, slope = _chunk_loss(
                    logits,
                    labels.ids[part][chosen],
                    None if teacher is None else teacher.rows(chosen),
                    weights,
                )
                sums[step] += loss
                correct[step] += hits
                if gradient is not None:
                    flow = slope.to(output.weight.dtype) @ output.weight
                    gradient[step].index_add_(0, rows, flow.to(states.dtype))
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct)
        return sums, correct

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = gradient * gradients[0].to(gradient.dtype)[:, None, None]
        return scaled, None, None, None


class _Teacher:
    """The target's distribution for a chunk of labels."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.probabilities = logits.softmax(-1)
        # sum p log p = sum p * logit - log sum exp
        self.negative_entropy = torch.linalg.vecdot(self.probabilities, logits) - logits.logsumexp(
            -1
        )

    def rows(self, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(chosen) == len(self.probabilities):
            return self.probabilities, self.negative_entropy
        return self.probabilities[chosen], self.negative_entropy[chosen]


def _chunk_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    teacher: tuple[torch.Tensor, torch.Tensor] | None,
    weights: LossWeights,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sum of the loss, number of hits, and the loss's derivative by `logits` [n, V']."""
    top, best = logits.max(-1)
    probabilities = logits.softmax(-1)
    # One exponential a logit is enough: the highest probability is at least 1 / V', so its
    # logarithm is exact where that of the label's may be log 0.
    normalizer = top - probabilities.gather(1, best.unsqueeze(1)).squeeze(1).log()
    at_label = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    loss = weights.cross_entropy * (normalizer - at_label)
    slope = probabilities
    if teacher is None:
        slope = slope.mul_(weights.cross_entropy) if weights.cross_entropy != 1 else slope
    else:
        wanted, negative_entropy = teacher
        cross = normalizer - torch.linalg.vecdot(wanted, logits)
        loss = loss + weights.kl * (negative_entropy + cross)
        slope = slope.mul_(weights.cross_entropy + weights.kl).sub_(wanted, alpha=weights.kl)
    if weights.cross_entropy:
        at = torch.full_like(at_label, -weights.cross_entropy).unsqueeze(1)
        slope.scatter_add_(1, labels.unsqueeze(1), at)
    return loss.sum(), (best == labels).sum(), slope
