"""Sampling on a CPU, with and without seeds: the hash that SGLang has for GPUs, and no sorting.

SGLang looks both up in `sglang.srt.layers.sampler`; `install` puts ours there, and lets
--enable-deterministic-inference take this platform's operators as they are: the bits of a row
depend on that row alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmtp_sglang.serving.cpu import sampling

_LOW = 0xFFFFFFFF


def murmur_hash32(seed: Tensor, positions: Tensor, col_indices: Tensor) -> Tensor:
    """MurmurHash3 (32 bits) of a seed's two halves, a position and a column.

    Args:
        seed: uint64 or int64 [rows].
        positions: integer [rows], of which 32 bits count.
        col_indices: integer [columns], likewise.

    Returns:
        int64 [rows, columns], from 0 to 2**32 - 1; SGLang's operators give the same as uint32.
    """
    # int64 has the low half of each product right, and torch no arithmetic on uint64.
    seed = seed.to(torch.int64)
    state = torch.zeros_like(seed)
    for block in (seed & _LOW, (seed >> 32) & _LOW, positions.to(torch.int64) & _LOW):
        state = _mix(state, block)
    hashed = _mix(state.unsqueeze(1), col_indices.to(torch.int64) & _LOW)
    hashed ^= 16  # bytes hashed
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        hashed ^= hashed >> shift
        hashed.mul_(factor).bitwise_and_(_LOW)
    return hashed.bitwise_xor_(hashed >> 16)


def _mix(state: Tensor, block: Tensor) -> Tensor:
    block = _rotated(block * 0xCC9E2D51 & _LOW, 15) * 0x1B873593 & _LOW
    return _rotated(state ^ block, 13).mul_(5).add_(0xE6546B64).bitwise_and_(_LOW)


def _rotated(x: Tensor, left: int) -> Tensor:
    return (x << left | x >> (32 - left)) & _LOW


def sample(
    probs: Tensor,
    sampling_seed: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """SGLang's `sampling_from_probs_torch`: one token a row of [rows, V], int32 [rows]."""
    if sampling_seed is None or positions is None:
        return sampling.sample_from(probs, torch.rand(len(probs))).int()
    return sampling.sample_seeded(probs, sampling_seed, positions).int()


def sample_filtered(
    stock: Callable[..., Any],
    probs: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps: Tensor,
    need_min_p_sampling: bool,
    sampling_seed: Tensor | None,
    positions: Tensor,
    return_filtered_probs: bool = False,
    **options: Any,
) -> Any:
    """SGLang's `top_k_top_p_min_p_sampling_from_probs_torch`, without sorting whole rows.

    Of equal probabilities at the edge of what is kept, and among ranks that are hashed with a seed,
    the lowest ids come first; SGLang's sort has no certain order of these. Where what was kept is
    to be returned as well, SGLang's own does all.
    """
    if return_filtered_probs:
        return stock(
            *(probs, top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions),
            return_filtered_probs=True,
            **options,
        )
    filters = top_ks, top_ps, min_ps if need_min_p_sampling else None
    if sampling_seed is None:
        return sampling.sample_kept(probs, torch.rand(len(probs)), *filters).int()
    return sampling.sample_seeded(probs, sampling_seed, positions, filters).int()


def _nothing_to_do(enable_bmm: bool = True) -> None:
    """Stands for SGLang's `enable_batch_invariant_mode`, whose operators are Triton kernels."""


def install(*, deterministic: bool) -> None:
    """Let SGLang find them in this process; idempotent.

    Args:
        deterministic: whether the server has --enable-deterministic-inference.
    """
    from sglang.kernels.ops.sampling import murmur_hash
    from sglang.srt.layers import sampler

    if deterministic:
        from sglang.srt import batch_invariant_ops

        batch_invariant_ops.enable_batch_invariant_mode = _nothing_to_do
    if sampler.murmur_hash32 is murmur_hash32:
        return
    murmur_hash.murmur_hash32 = sampler.murmur_hash32 = murmur_hash32
    # Compiled by SGLang, which takes a C++ compiler and seconds.
    drawn = sampler.multinomial_with_seed
    sampler.multinomial_with_seed = getattr(drawn, "_torchdynamo_orig_callable", drawn)
    sampler.sampling_from_probs_torch = sample
    sampler.top_k_top_p_min_p_sampling_from_probs_torch = functools.partial(
        sample_filtered, sampler.top_k_top_p_min_p_sampling_from_probs_torch
    )
