"""Gemma 3's decoder layer as the block of a head: SGLang's own, called as those of other families.

SGLang's takes rotary positions from its model, one of two by whether the layer has a window, and
returns its residual, which the layers of other families leave in the batch. Both are seen to here.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from sglang.srt.layers.layer_boundary import PLAIN_ADD
from sglang.srt.layers.layer_boundary.residual.stream import ResidualStream
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.models.gemma3_causal import Gemma3DecoderLayer, Gemma3RotaryEmbedding
from transformers import PreTrainedConfig


class GemmaBlock(Gemma3DecoderLayer):
    """SGLang's decoder layer with the rotary positions of its kind."""

    def __init__(self, *, config: PreTrainedConfig, **options: Any) -> None:
        """Build the layer.

        Args:
            config: `FastMTPConfig.block_config`, of one layer.
            options: of SGLang's layer.
        """
        super().__init__(config=config, **options)
        of_kind = copy.deepcopy(config)
        of_kind.rope_parameters = config.rope_parameters[config.layer_types[0]]
        self.rotary_emb = Gemma3RotaryEmbedding(of_kind)

    def forward(  # type: ignore[override]
        self, positions: torch.Tensor, hidden_states: torch.Tensor, forward_batch: ForwardBatch
    ) -> torch.Tensor:
        """Apply the layer.

        Args:
            positions: int64 [tokens].
            hidden_states: [tokens, D].
            forward_batch: its residual stream is started, and holds the residual afterwards.

        Returns:
            [tokens, D], what is yet to be added to the residual.
        """
        angles = self.rotary_emb(hidden_states, positions.unsqueeze(0))
        states, residual = super().forward(
            positions=positions,
            hidden_states=hidden_states,
            position_embeddings_global=angles,
            position_embeddings_local=angles,
            forward_batch=forward_batch,
        )
        states, forward_batch.residual_stream = ResidualStream.from_handoff(
            states, residual, PLAIN_ADD
        )
        return states
