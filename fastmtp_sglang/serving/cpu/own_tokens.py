"""A request's own tokens on a CPU: the native operators as functions of torch tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtp_kernels.torch_draft import torch_gathered
from fastmtp_sglang.serving.cpu.fused import DTYPES
from fastmtp_sglang.serving.cpu.native import own_tokens
from fastmtp_sglang.serving.cpu.native.engine import engine


def gathered(
    hidden: Tensor,
    head: Tensor,
    own_ids: Tensor,
    request_slots: Tensor,
    languages: Tensor,
    shard: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """`fastmtp_kernels.torch_draft.torch_gathered` as one operator."""
    if head.dtype not in DTYPES:
        return torch_gathered(hidden, head, own_ids, request_slots, languages, shard)
    (rows, width), (_, lists, number) = hidden.shape, own_ids.shape
    scores, ids = torch.empty(rows, number), torch.empty(rows, number, dtype=torch.int64)
    # They must live until the operator has run.
    slots, used = request_slots.to(torch.int64), languages.to(torch.int64)
    native = engine()
    native.reserve(own_tokens.scratch_bytes(width))
    native.run(
        rows,
        own_tokens.gather.address,
        *(hidden.data_ptr(), hidden.stride(0), head.data_ptr(), head.stride(0), width),
        *(int(head.dtype == torch.bfloat16), own_ids.data_ptr(), lists, number),
        *(slots.data_ptr(), used.data_ptr(), *shard, scores.data_ptr(), ids.data_ptr()),
        parts_a_row=number // own_tokens.PANEL,
    )
    return scores, ids


def joined(
    scores: Tensor, ids: Tensor, log_sum_exp: Tensor, own_scores: Tensor, own_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`fastmtp_kernels.torch_draft.torch_joined` as one operator, which writes what it returns."""
    rows, k = scores.shape
    engine().run(
        rows,
        own_tokens.join.address,
        *(scores.data_ptr(), ids.data_ptr(), k),
        log_sum_exp.data_ptr() if len(log_sum_exp) else 0,
        *(own_scores.data_ptr(), own_ids.data_ptr(), own_ids.shape[1]),
        parts_a_row=1,
    )
    return scores, ids, log_sum_exp


def remember(
    members: Tensor,
    own_ids: Tensor,
    own_stamps: Tensor,
    slots: Tensor,
    token_ids: Tensor,
    accept_lens: Tensor,
) -> None:
    """`routing.own_tokens.remember_in_torch` as one native call."""
    own_tokens.remember(
        *(x.numpy() for x in (members, own_ids, own_stamps)),
        *(x.long().contiguous().numpy() for x in (slots, token_ids, accept_lens)),
    )
