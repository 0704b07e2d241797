"""SGLang's small layers on a CPU: one native operator each, where SGLang's reference takes dozens.

Norms, gates and rotary positions are offered through SGLang's registry for out-of-tree platforms.
What an operator does not know (an option, a dtype, an odd layout) goes to SGLang's reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.layers.activation import GeluAndMul, SiluAndMul
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm, RMSNorm
from sglang.srt.layers.rotary_embedding import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.rope_variant import Llama3RotaryEmbedding
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fastmtp_sglang.serving.cpu.native.engine import engine
from fastmtp_sglang.serving.cpu.native.packing import Packed

DTYPES = (torch.float32, torch.bfloat16)
# Where a layer keeps the float32 copy of its weight.
_COPY = "_fastmtp_float32"


def register(platform_key: str) -> None:
    """Offer the operators to SGLang for the platform of this dispatch key."""
    from sglang.srt.models import utils

    for layer, forward in (
        (RMSNorm, rms_norm),
        (GemmaRMSNorm, gemma_norm),
        (Gemma3RMSNorm, gemma_norm),
        (SiluAndMul, silu_and_mul),
        (GeluAndMul, gelu_and_mul),
        (RotaryEmbedding, rotate),
        (Llama3RotaryEmbedding, rotate),
    ):
        BaseFusedOp.register_oot_forward(layer, forward, platform_key)
    utils._reshape_for_qk_norm = heads


def rms_norm(
    op: RMSNorm,
    x: Tensor,
    residual: Tensor | None = None,
    post_residual_addition: Tensor | None = None,
    quant_linear: torch.nn.Module | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """RMSNorm of x (+ residual, which then holds the sum)."""
    known = (
        not op.cast_x_before_out_mul
        and not op.fp32_residual
        and op.override_orig_dtype is None
        and op.variance_size_override is None
        and post_residual_addition is None
        and x.shape[-1] == op.hidden_size
        and _plain(x, residual)
    )
    if not known:
        return op.forward_native(x, residual, post_residual_addition, quant_linear)
    weight = _float32(op, op.weight, 0.0)
    out = engine().norm(x, weight, op.variance_epsilon, residual)
    return out if residual is None else (out, residual)


def gemma_norm(
    op: GemmaRMSNorm | Gemma3RMSNorm,
    x: Tensor,
    residual: Tensor | None = None,
    post_residual_addition: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """RMSNorm whose weight is 1 + w."""
    if post_residual_addition is not None or not _plain(x, residual):
        more = () if post_residual_addition is None else (post_residual_addition,)
        return op.forward_native(x, residual, *more)
    epsilon = op.variance_epsilon if isinstance(op, GemmaRMSNorm) else op.eps
    out = engine().norm(x, _float32(op, op.weight, 1.0), epsilon, residual)
    return out if residual is None else (out, residual)


def heads(x: Tensor, head_dim: int) -> Tensor:
    """[N, heads, size] of a part [N, heads * size] of a projection, for the norms of Qwen3's heads.

    The operator reads heads where they lie; SGLang copies them side by side.
    """
    return x.unflatten(-1, (-1, head_dim))


def silu_and_mul(op: SiluAndMul, x: Tensor) -> Tensor:
    """silu(left half) * right half."""
    return engine().gate(x, "silu") if _plain(x) else op.forward_native(x)


def gelu_and_mul(op: GeluAndMul, x: Tensor) -> Tensor:
    """gelu(left half) * right half."""
    return engine().gate(x, op.approximate) if _plain(x) else op.forward_native(x)


def rotate(
    op: RotaryEmbedding,
    positions: Tensor,
    query: Tensor,
    key: Tensor,
    offsets: Tensor | None = None,
    fused_set_kv_buffer_arg: Any = None,
) -> tuple[Tensor, Tensor]:
    """Rotary positions of `query` and `key`, in place.

    Both are [N, heads * size] or [N, heads, size], each with its own number of heads.
    """
    by_head = [_by_head(heads, op.head_size) for heads in (query, key)]
    known = (
        op.is_neox_style
        and not hasattr(op, "sin_cos_cache")
        and positions.dim() == 1
        and positions.dtype == torch.int64
        and query.dtype == key.dtype
        and query.dtype in DTYPES
        and offsets is None
        and fused_set_kv_buffer_arg is None
    )
    if not known or by_head[0] is None or by_head[1] is None:
        return op.forward_native(positions, query, key, offsets, fused_set_kv_buffer_arg)
    engine().rotate(positions, by_head[0], by_head[1], _float32(op, op.cos_sin_cache, 0.0))
    return query, key


def join(hidden: Tensor, tokens: Tensor, positions: Tensor) -> Tensor:
    """`drafting.head_model.join` as one operator."""
    return engine().join(hidden, tokens, positions.to(torch.int64))


def draft_product(rows: Tensor) -> Callable[[Tensor], Tensor]:
    """Copy head rows [n, D]; the product of float32 hidden states [B, D] with them, [B, n]."""
    packed = Packed.of(rows)
    return lambda hidden: engine().product(hidden, packed)


def draft_best(scores: Tensor, k: int, log_sum_exp: bool) -> tuple[Tensor, Tensor, Tensor]:
    """`fastmtp_kernels.torch_draft.torch_best` as one operator."""
    return engine().best(scores, k, log_sum_exp)


def _plain(x: Tensor, residual: Tensor | None = None) -> bool:
    """Whether the operators can read x and write the residual."""
    if x.dtype not in DTYPES or x.stride(-1) != 1:
        return False
    return residual is None or (
        residual.dtype == x.dtype and residual.shape == x.shape and residual.is_contiguous()
    )


def _by_head(x: Tensor, size: int) -> Tensor | None:
    """x as [N, heads, size], None where its heads do not lie side by side."""
    if x.dim() == 2:
        return x.unflatten(1, (-1, size)) if x.stride(1) == 1 else None
    return x if x.dim() == 3 and x.shape[2] == size and x.stride()[1:] == (size, 1) else None


def _float32(op: torch.nn.Module, tensor: Tensor, plus: float) -> Tensor:
    """tensor + plus in float32: itself where it is that, else a copy that `forget_copies` drops."""
    if tensor.dtype == torch.float32 and plus == 0.0:
        return tensor.detach()
    kept = op.__dict__.get(_COPY)
    if kept is None:
        # Made while a pass is recorded, it is no part of that pass.
        with _disable_current_modes():
            kept = op.__dict__[_COPY] = tensor.detach().float() + plus
    return kept


def forget_copies(model: torch.nn.Module) -> None:
    """Let the operators read weights again that have changed."""
    for module in model.modules():
        module.__dict__.pop(_COPY, None)
