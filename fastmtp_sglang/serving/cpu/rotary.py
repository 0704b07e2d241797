"""Rotary positions on a CPU, in few of torch's operators.

At a decoding step's sizes an operator costs its dispatch, several times that once a layer's weights
have swept the caches, and SGLang's reference spends two dozen (SmolLM2-135M, bfloat16, batch 8, two
Xeon cores: 7.2 of 80 ms; these 3.8). In bfloat16 one rounding less. Whatever option these do not
know goes to SGLang's reference.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.layers.rotary_embedding import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.rope_variant import Llama3RotaryEmbedding
from torch import Tensor


def register(platform_key: str) -> None:
    """Offer `rotate` to SGLang for the platform of this dispatch key."""
    for rotary in (RotaryEmbedding, Llama3RotaryEmbedding):
        BaseFusedOp.register_oot_forward(rotary, rotate, platform_key)


def rotate(
    op: RotaryEmbedding,
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    offsets: Tensor | None = None,
    fused_set_kv_buffer_arg: Any = None,
) -> tuple[Tensor, Tensor]:
    """Rotary positions of `query` [N, heads * size] and `key` [N, key heads * size]."""
    known = (
        op.is_neox_style
        and op.rotary_dim == op.head_size
        and not hasattr(op, "sin_cos_cache")
        and query.dim() == key.dim() == 2
        and offsets is None
        and fused_set_kv_buffer_arg is None
    )
    if not known:
        return op.forward_native(positions, query, key, offsets, fused_set_kv_buffer_arg)
    cos, sin = _angles(op, positions, query.dtype)
    width, size = query.shape[1], op.head_size
    if _adjacent(query, key):
        # The projection's output holds both, side by side.
        both = (len(query), (width + key.shape[1]) // size, size)
        rotated = _rotated(query.as_strided(both, (query.stride(0), size, 1)), cos, sin)
        return rotated[:, :width], rotated[:, width:]
    query, key = query.unflatten(1, (-1, size)), key.unflatten(1, (-1, size))
    return _rotated(query, cos, sin), _rotated(key, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[N, heads, size] to [N, heads * size]."""
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return torch.addcmul(x * cos, swapped, sin).flatten(1)


def _adjacent(query: Tensor, key: Tensor) -> bool:
    """Whether each row of `key` begins where that of `query` ends."""
    return (
        query.stride() == key.stride()
        and query.stride(1) == 1
        and query.dtype == key.dtype
        and query.untyped_storage().data_ptr() == key.untyped_storage().data_ptr()
        and key.storage_offset() == query.storage_offset() + query.shape[1]
    )


def _angles(op: RotaryEmbedding, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of positions [N], each [N, 1, size]; kept for the layers to come.

    The layers of a model share `op`, and most passes give all of them the same positions.
    """
    kept = getattr(op, "_fastmtp_angles", None)
    if kept is None or kept[0] != dtype or not torch.equal(kept[1], positions):
        cos, sin = op.cos_sin_cache.index_select(0, positions.flatten()).chunk(2, dim=-1)
        wide = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        cos, sin = (t.unsqueeze(1).to(dtype) for t in wide)
        kept = op._fastmtp_angles = dtype, positions.clone(), cos, sin
    return kept[2], kept[3]
