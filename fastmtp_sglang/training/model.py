"""The head as it is trained: all K steps over a packed batch in one forward.

`ChainHead` has the parameters, names and configuration of `head.module.FastMTPHead`, so each of its
checkpoints is a head directory. What is frozen (embedding, output layer, the target when it runs
online) is held by a plain object, which neither the optimizer nor a checkpoint nor FSDP sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from fastmtp_sglang.head.config import ARCHITECTURE, FastMTPConfig
from fastmtp_sglang.head.module import FastMTPHead
from fastmtp_sglang.training.attention import CHAIN, ChainAttention
from fastmtp_sglang.training.loss import ChainLoss, Labels, LossWeights, OutputLayer, chain_loss
from fastmtp_sglang.training.own_lists import OwnLists
from fastmtp_sglang.training.target import FrozenTarget

Output = OutputLayer | OwnLists

# Hidden states of the last step, or None before the first -> ids of step k's tokens (`step` counts
# from 1): int64 [R] of the rows in step 1, [N] of the anchors after it.
NextIds = Callable[[int, torch.Tensor | None], torch.Tensor]


class ChainHead(FastMTPHead):
    """A `FastMTPHead` whose forward runs the chain of every anchor and returns its loss."""

    def __init__(self, config: FastMTPConfig) -> None:
        super().__init__(config)
        self.block_config._attn_implementation = CHAIN
        self._frozen: tuple[FrozenTarget, Output, LossWeights] | None = None
        self._loss: ChainLoss = chain_loss

    def attach(
        self,
        target: FrozenTarget,
        output: Output,
        weights: LossWeights,
        loss: ChainLoss = chain_loss,
    ) -> None:
        """Give the head what is frozen, and its loss; before the first forward."""
        self._frozen = (target, output, weights)
        self._loss = loss

    def chain_states(
        self,
        hidden_states: torch.Tensor,
        batch: dict[str, torch.Tensor],
        embed: Callable[[torch.Tensor], torch.Tensor],
        next_ids: NextIds,
        num_steps: int,
    ) -> Iterator[torch.Tensor]:
        """Run the chain of every anchor, step by step.

        Args:
            hidden_states: [R, D], the target's, at the step-1 rows.
            batch: what `packing.pack` returned.
            embed: ids int64 [n] -> embeddings [n, D].
            next_ids: the tokens that enter a step; of the text (teacher forcing) or drafted.
            num_steps: K.

        Yields:
            [N, D]: the head's output of step k at each anchor.
        """
        anchors = batch["anchors"]
        chain = ChainAttention(
            batch["row_lengths"].tolist(),
            anchors,
            batch["anchor_lengths"].tolist(),
            self.config.window,
        )
        positions = batch["positions"]
        states = self._step(hidden_states, embed(next_ids(1, None)), positions, chain)[anchors]
        yield states
        positions = positions[anchors]
        for step in range(2, num_steps + 1):
            ids = next_ids(step, states)
            states = self._step(states, embed(ids), positions + step - 1, chain)
            yield states

    def forward(  # type: ignore[override]
        self, draft_with: Output | None = None, **batch: Any
    ) -> dict[str, torch.Tensor]:
        """Teacher-forced loss of a packed batch (`packing.pack`), or its free-running drafts.

        Both go through `forward`, where DDP and FSDP have their hooks.

        Args:
            draft_with: draft greedily with this output layer instead of computing the loss.
            batch: what `packing.pack` returned.

        Returns:
            sums: [K], loss of each step summed over its labels, differentiable.
            correct: int64 [K], labels that scored highest.
            Or drafts: int64 [K, N], the tokens that each anchor's chain drafts.
        """
        assert self._frozen is not None, "attach() comes first"
        target, output, weights = self._frozen
        ids, rows, label_rows = batch["input_ids"], batch["rows"], batch["label_rows"]
        num_steps = len(label_rows)
        hidden = batch.get("hidden_states")
        if hidden is None:
            hidden = target.packed_hidden_states(ids, batch["lengths"].tolist())
        trained = next(self.parameters()).dtype

        def chain(next_ids: NextIds) -> Iterator[torch.Tensor]:
            def embed(wanted: torch.Tensor) -> torch.Tensor:
                return target.embed(wanted).to(trained)

            return self.chain_states(hidden[rows].to(trained), batch, embed, next_ids, num_steps)

        # A chain may run past its document's last token; it has no labels there, any id will do.
        last = len(ids) - 1
        if draft_with is not None:
            first = ids[(rows + 1).clamp_(max=last)]
            return {"drafts": _drafts(chain, first, lambda s: draft_with.argmax(s, batch))}
        at_anchors = rows[batch["anchors"]]

        def forced(step: int, states: torch.Tensor | None) -> torch.Tensor:
            start = rows if step == 1 else at_anchors
            return ids[(start + step).clamp_(max=last)]

        at = batch["labels"]
        states = torch.stack(list(chain(forced)))
        found = []
        for layer, part in output.parts(batch):
            labels = Labels(
                label_rows[:, part],
                layer.to_local(ids[at[part]]),
                hidden[at[part] - 1] if weights.kl else None,
            )
            found.append(self._loss(states, labels, layer, weights))
        sums, correct = (torch.stack(of_parts).sum(0) for of_parts in zip(*found, strict=True))
        return {"sums": sums, "correct": correct}

    def _step(
        self,
        states: torch.Tensor,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        chain: ChainAttention,
    ) -> torch.Tensor:
        # `chain` masks by itself; transformers hands a mask of four dimensions on as it is.
        no_mask = states.new_empty(1, 1, 0, 0)
        return super().forward(
            states.unsqueeze(0), embeddings.unsqueeze(0), positions.unsqueeze(0), no_mask,
            chain=chain,
        )[0]  # fmt: skip


def _drafts(
    chain: Callable[[NextIds], Iterator[torch.Tensor]],
    first_ids: torch.Tensor,
    best: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Let every chain read its own tokens; int64 [K, N]."""
    drafts: list[torch.Tensor] = []

    def drafted(step: int, states: torch.Tensor | None) -> torch.Tensor:
        return drafts[-1] if states is not None else first_ids

    for states in chain(drafted):
        drafts.append(best(states))
    return torch.stack(drafts)


# transformers writes the class's name into config.json, which has to say what serves it.
ChainHead.__name__ = ARCHITECTURE
