"""Gemma 3's layers from native operators alone, so that they can be recorded (`replay`).

SGLang computes the rotary angles of each pass by torch, once for all layers of a kind, while every
layer holds a table of the same angles for SGLang's own path on CPUs, `Gemma3Attention.forward_cpu`.
That path is taken here, its table turned by `fused.rotate`; and what looks tokens up multiplies
them too. Not a bit of a result changes.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from sglang.srt.layers.rotary_embedding import RotaryEmbedding
from sglang.srt.models.gemma3_causal import (
    Gemma3Attention,
    Gemma3DecoderLayer,
    Gemma3RotaryEmbedding,
    Gemma3TextModel,
    Gemma3TextScaledWordEmbedding,
)
from torch import Tensor

from fastmtp_sglang.serving.cpu.fused import DTYPES
from fastmtp_sglang.serving.cpu.packed_linear import look_up
from fastmtp_sglang.serving.drafting.gemma_block import GemmaBlock

logger = logging.getLogger(__name__)


def install(model: torch.nn.Module) -> None:
    """Let a Gemma 3 (text), or a head whose block is its layer, compute natively.

    Where a layer's table is not what the model computes (scaled positions, float16), the layers
    stay as they are, and are not recorded.
    """
    body: Any = getattr(model, "model", None)
    block: Any = getattr(model, "block", None)
    if type(body) is Gemma3TextModel:
        embedding = body.embed_tokens
        if embedding.weight.dtype in DTYPES:
            embedding.__dict__["forward"] = functools.partial(_look_up, embedding)
        _turn_by_tables(
            body.layers,
            lambda layer: body.rotary_emb_local if layer.is_sliding else body.rotary_emb,
        )
    elif type(block) is GemmaBlock:
        _turn_by_tables([block], lambda block: block.rotary_emb)


def _look_up(embedding: Gemma3TextScaledWordEmbedding, input_ids: Tensor) -> Tensor:
    return look_up(embedding, input_ids, embedding.embed_scale)


def _turn_by_tables(
    layers: Iterable[Gemma3DecoderLayer],
    angles_of: Callable[[Gemma3DecoderLayer], Gemma3RotaryEmbedding],
) -> None:
    """Let attention read its own table where all of `layers` can, and no angles be computed."""
    if not all(_is_table_of(layer, angles_of(layer)) for layer in layers):
        logger.info("Gemma's rotary positions are not those of its layers' tables.")
        return
    for layer in layers:
        attention = layer.self_attn
        attention.__dict__["forward"] = functools.partial(_attend, attention)
        angles_of(layer).__dict__["forward"] = _no_angles


def _is_table_of(layer: Gemma3DecoderLayer, angles: Gemma3RotaryEmbedding) -> bool:
    """Whether the table of a layer holds what `angles` computes for it."""
    table, dtype = layer.self_attn.rotary_emb, layer.input_layernorm.weight.dtype
    return (
        type(table) is RotaryEmbedding
        and dtype in DTYPES
        # SGLang rounds angles to the dtype of the layers.
        and table.cos_sin_cache.dtype == dtype
        # Others change with the longest position of a batch.
        and angles.rope_type == "default"
        and angles.attention_scaling == 1.0
        and torch.equal(angles.inv_freq, table._compute_inv_freq(table.base))
    )


def _attend(
    attention: Gemma3Attention,
    positions: Tensor,
    hidden_states: Tensor,
    position_embeddings: None,
    forward_batch: Any,
    **kwargs: Any,
) -> Tensor:
    """`Gemma3Attention.forward`; a model gives int64 positions [1, tokens], a block [tokens]."""
    return attention.forward_cpu(
        positions.flatten(), hidden_states, position_embeddings, forward_batch, **kwargs
    )


def _no_angles(x: Tensor, position_ids: Tensor) -> None:
    """`Gemma3RotaryEmbedding.forward` where nobody reads what it returns."""
