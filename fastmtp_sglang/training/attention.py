"""Attention of a draft chain over a whole sequence at once.

While serving, the KV cache that step k of a chain reads at position t holds two kinds of entries:
for every position <= t the key and value that step 1 wrote from the target's hidden state (draft
extend rewrites what a chain left there), and for the chain itself those of its steps 2..k. So in
the parallel forward the query of step k at anchor t sees

    step-1 keys of positions 0..t of its document, and keys of steps 2..k of anchor t alone,

of both only those within its window, where the block has one (Gemma's may).
This is the "training-time test" mask of EAGLE-3 (arXiv 2503.01840), on packed documents. For the
implementation name `CHAIN` transformers calls `chain_attention` in the place of its own attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

CHAIN = "fastmtp_chain"

# Queries that share one mask. Smaller blocks see fewer keys that their mask then hides, larger ones
# mean fewer calls; 128 queries with 3 steps hide at most 3 * 128 keys.
_BLOCK = 128


class ChainAttention:
    """The keys and values of one packed batch, step by step: one object a forward.

    Args:
        row_lengths: step-1 rows of each document; rows are positions 0, 1, ... of their document.
        anchors: int64 [N], which of all step-1 rows start a chain; ascending.
        anchor_lengths: anchors of each document.
        window: positions that a query sees, its own included; None for all.
    """

    def __init__(
        self,
        row_lengths: list[int],
        anchors: torch.Tensor,
        anchor_lengths: list[int],
        window: int | None = None,
    ) -> None:
        self.window = window
        self._row_lengths = row_lengths
        self._anchor_lengths = anchor_lengths
        starts = torch.tensor(row_lengths, dtype=torch.int64).cumsum(0) - torch.tensor(row_lengths)
        # Positions in their document: kept on the host, where they bound slices.
        self._anchors = [
            anchors_of.cpu() - start
            for anchors_of, start in zip(
                anchors.split(anchor_lengths), starts.tolist(), strict=True
            )
        ]
        self._keys: list[list[torch.Tensor]] = []
        self._values: list[list[torch.Tensor]] = []

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """Attend in the next step.

        Args:
            query: [1, heads, rows, size]; the rows of step 1, or the anchors of a later step.
            key: [1, key heads, rows, size].
            value: as `key`.
            scaling: factor of the scores.

        Returns:
            [1, rows, heads, size].
        """
        first = not self._keys
        lengths = self._row_lengths if first else self._anchor_lengths
        groups = query.shape[1] // key.shape[1]
        self._keys.append(list(_per_head(key, groups).split(lengths, dim=2)))
        self._values.append(list(_per_head(value, groups).split(lengths, dim=2)))
        outputs = []
        for document, queries in enumerate(query.split(lengths, dim=2)):
            if not queries.shape[2]:
                continue
            if not first:
                outputs.extend(self._chain_blocks(document, queries, scaling))
            elif self.window is not None and self.window < queries.shape[2]:
                outputs.extend(self._windowed_blocks(document, queries, scaling))
            else:
                outputs.append(
                    scaled_dot_product_attention(
                        queries,
                        self._keys[0][document],
                        self._values[0][document],
                        is_causal=True,
                        scale=scaling,
                    )
                )
        return torch.cat(outputs, dim=2).transpose(1, 2)

    def _windowed_blocks(
        self, document: int, queries: torch.Tensor, scaling: float
    ) -> list[torch.Tensor]:
        """Step 1 of a document that is longer than the window."""
        outputs = []
        for start in range(0, queries.shape[2], _BLOCK):
            stop = min(start + _BLOCK, queries.shape[2])
            seen = slice(self._first_seen(start), stop)
            hidden = self._hidden(torch.arange(start, stop), seen)
            outputs.append(
                scaled_dot_product_attention(
                    queries[:, :, start:stop],
                    self._keys[0][document][:, :, seen],
                    self._values[0][document][:, :, seen],
                    attn_mask=_additive(hidden, queries),
                    scale=scaling,
                )
            )
        return outputs

    def _chain_blocks(
        self, document: int, queries: torch.Tensor, scaling: float
    ) -> list[torch.Tensor]:
        outputs = []
        for start in range(0, queries.shape[2], _BLOCK):
            block = slice(start, min(start + _BLOCK, queries.shape[2]))
            first, last = self._anchors[document][[block.start, block.stop - 1]].tolist()
            seen = slice(min(self._first_seen(first + len(self._keys) - 1), last + 1), last + 1)
            outputs.append(
                scaled_dot_product_attention(
                    queries[:, :, block],
                    _visible(self._keys, document, block, seen),
                    _visible(self._values, document, block, seen),
                    attn_mask=self._mask(document, block, seen, queries),
                    scale=scaling,
                )
            )
        return outputs

    def _mask(
        self, document: int, block: slice, seen: slice, queries: torch.Tensor
    ) -> torch.Tensor:
        """Additive [queries, seen + steps * queries] of 0 and -inf."""
        steps = len(self._keys) - 1
        anchors = self._anchors[document][block]
        hidden = self._hidden(anchors, seen, steps)
        others = torch.eye(len(anchors), dtype=torch.bool).logical_not()
        # Step k of a chain stands at the position of its anchor + k - 1.
        own = [
            others if self.window is None or steps - step < self.window else torch.ones_like(others)
            for step in range(1, steps + 1)
        ]
        return _additive(torch.cat((hidden, *own), dim=1), queries)

    def _hidden(self, anchors: torch.Tensor, seen: slice, later: int = 0) -> torch.Tensor:
        """Which step-1 keys, of the positions `seen`, queries `later` behind anchors do not see.

        Bool [anchors, seen].
        """
        keys, anchors = torch.arange(seen.start, seen.stop), anchors.unsqueeze(1)
        hidden = keys > anchors
        if self.window is not None:
            hidden |= keys <= anchors + later - self.window
        return hidden

    def _first_seen(self, position: int) -> int:
        return 0 if self.window is None else max(0, position - self.window + 1)


def chain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    chain: ChainAttention,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function of implementation `CHAIN`; see `ChainAttention.attend`.

    Raises:
        ValueError: the block uses dropout, or a window with which its head is not served.
    """
    if dropout or sliding_window != chain.window:
        raise ValueError(f"no chain attention with dropout {dropout}, window {sliding_window}")
    return chain.attend(query, key, value, scaling), None


def _visible(
    side: list[list[torch.Tensor]], document: int, block: slice, seen: slice
) -> torch.Tensor:
    """Keys or values that the queries of a block see: `seen` of step 1, then their chains."""
    chain = [step[document][:, :, block] for step in side[1:]]
    return torch.cat([side[0][document][:, :, seen], *chain], dim=2)


def _additive(hidden: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """0 and -inf of `queries`' dtype, where it lives."""
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    return mask.to(device=queries.device, dtype=queries.dtype)


def _per_head(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    """[1, key heads, rows, size] -> one for each query head."""
    return tensor if groups == 1 else tensor.repeat_interleave(groups, dim=1)


AttentionInterface.register(CHAIN, chain_attention)
