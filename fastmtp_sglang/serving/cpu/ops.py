"""Torch versions of the device operators that SGLang's speculative path has only for accelerators.

`install` puts them where SGLang looks them up, in the scheduler process and only on our CPU
platform; those for trees are in `tree`. All tensors are on the CPU, so reading a length costs no
synchronization. Request i owns the rows i * n .. i * n + n - 1.

Plain `setattr` instead of SGLang's HookRegistry: three of the names hold None on a CPU, and the
registry would then replace every attribute of every module that is None.
"""

import importlib
from typing import Any

import numpy as np
import torch

from fastmtp_kernels.route import RouteRules, RouteState, RouteTables
from fastmtp_kernels.torch_draft import TorchDraftLogits
from fastmtp_sglang.serving.cpu import sampling, tree
from fastmtp_sglang.serving.cpu.native import routes
from fastmtp_sglang.serving.routing.router import Router
from fastmtp_sglang.serving.verification.filters import Filters


def assign_extend_cache_locs(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    draft_token_num: int,
    **_: Any,
) -> torch.Tensor:
    """Cache slots of the next `draft_token_num` positions of each request, int64 [bs * n]."""
    columns = start_offset.to(torch.int64).unsqueeze(1) + torch.arange(draft_token_num)
    return req_to_token[req_pool_indices.unsqueeze(1), columns].to(torch.int64).flatten()


def assign_draft_cache_locs_contiguous(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    seq_lens: torch.Tensor,
    out_cache_loc: torch.Tensor,
    topk: int,
    num_cols: int,
    positions: torch.Tensor | None = None,
    mrope: torch.Tensor | None = None,
) -> None:
    """Fill `out_cache_loc` [bs * topk * num_cols] with the slots that follow each request."""
    out_cache_loc.copy_(
        assign_extend_cache_locs(req_pool_indices, req_to_token, seq_lens, topk * num_cols)
    )
    for target in (positions, mrope):
        if target is not None:
            target.copy_(seq_lens.repeat_interleave(topk).expand_as(target))


def assign_req_to_token_pool(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    batch_size: int,
) -> None:
    """Write newly allocated slots into each request's row, positions start..end-1."""
    # Called in each step, where numpy's operators take a tenth of torch's time.
    slots, start = req_pool_indices.numpy(), start_offset.numpy()
    counts = end_offset.numpy() - start
    ends = counts.cumsum()
    within = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    columns = np.repeat(start, counts) + within
    req_to_token.numpy()[np.repeat(slots, counts), columns] = out_cache_loc[: ends[-1]].numpy()


def gather_spec_extras(
    indices: torch.Tensor,
    topk_p: torch.Tensor,
    topk_index: torch.Tensor,
    output_tokens: torch.Tensor,
    hidden_states: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Rows `indices` of the buffers that relay draft state between overlapped iterations."""
    return (
        topk_p[indices],
        topk_index[indices],
        output_tokens[indices],
        None if hidden_states is None else hidden_states[indices],
    )


def fill_bonus_tokens(
    accept_tokens: torch.Tensor,
    accept_lens: torch.Tensor,
    bonus_tokens: torch.Tensor,
    accept_stride: int,
    batch_size: int,
) -> None:
    """The last accepted token of each request, from `accept_tokens` [bs, accept_stride]."""
    last = accept_lens.to(torch.int64).unsqueeze(1) - 1
    bonus_tokens.copy_(accept_tokens.view(batch_size, accept_stride).gather(1, last).squeeze(1))


def advance_routes(
    tables: RouteTables,
    state: RouteState,
    rules: RouteRules,
    slots: torch.Tensor,
    token_ids: torch.Tensor,
    accept_lens: torch.Tensor,
) -> None:
    """`routing.router.advance_in_torch` as one native call."""
    routes.advance(
        *(x.long().contiguous().numpy() for x in (slots, token_ids, accept_lens)),
        np.array(rules, dtype=np.float64),
        *(x.numpy() for x in (*tables, *state)),
    )


# module, name, replacement. Several modules bind the same function under its own name at import.
_REPLACEMENTS = (
    ("sglang.srt.mem_cache.allocation", "assign_req_to_token_pool_func", assign_req_to_token_pool),
    ("sglang.srt.managers.overlap_utils", "gather_spec_extras", gather_spec_extras),
    (
        "sglang.srt.speculative.eagle_worker_common",
        "assign_draft_cache_locs_contiguous_func",
        assign_draft_cache_locs_contiguous,
    ),
    ("sglang.srt.speculative.eagle_worker_common", "fill_bonus_tokens_func", fill_bonus_tokens),
    ("sglang.srt.speculative.eagle_utils", "build_tree_kernel_efficient_func", tree.build_tree),
    ("sglang.srt.speculative.eagle_utils", "verify_tree_greedy_func", tree.verify_tree_greedy),
    (
        "sglang.srt.speculative.eagle_utils",
        "tree_speculative_sampling_target_only",
        tree.sample_tree_target_only,
    ),
    (
        "sglang.srt.speculative.eagle_utils",
        "chain_speculative_sampling_triton",
        sampling.sample_chain_from_proposal,
    ),
    (
        "sglang.srt.speculative.eagle_worker_common",
        "duplicate_prefix_tail_to_draft_branches",
        tree.keep_prefix_in_place,
    ),
    ("sglang.srt.speculative.spec_utils", "fill_front_out_cache_loc_func", tree.pack_first_slots),
    (
        "sglang.srt.speculative.spec_utils",
        "fill_accept_out_cache_loc_func",
        tree.pack_accepted_slots,
    ),
    ("sglang.srt.speculative.spec_utils", "row_argmax", sampling.row_argmax),
    ("sglang.srt.speculative.eagle_utils", "top_k_renorm_prob", sampling.top_k_renorm),
    ("sglang.srt.speculative.eagle_utils", "top_p_renorm_prob", sampling.top_p_renorm),
)


def install() -> None:
    """Put the torch operators, the draft attention and the draft backends in place; idempotent."""
    from sglang.srt.speculative.draft_utils import DraftBackendFactory

    from fastmtp_sglang.serving.cpu import fused, own_tokens
    from fastmtp_sglang.serving.cpu.attention import CpuAttnBackend, CpuDraftAttnBackend

    for module, name, replacement in _REPLACEMENTS:
        setattr(importlib.import_module(module), name, replacement)

    def create_decode_backend(factory):
        if factory.speculative_num_steps <= 1:
            return None
        return CpuDraftAttnBackend(
            factory.draft_model_runner, factory.topk, factory.speculative_num_steps
        )

    DraftBackendFactory.create_decode_backend = create_decode_backend
    DraftBackendFactory.create_draft_extend_backend = lambda factory: CpuAttnBackend(
        factory.draft_model_runner
    )
    _select_eagerly()
    Filters.at_once = staticmethod(sampling.keep_largest)
    Router.advance_on_host = staticmethod(advance_routes)
    Router.remember_on_host = staticmethod(own_tokens.remember)
    TorchDraftLogits.packer = staticmethod(fused.draft_product)
    TorchDraftLogits.chooser = staticmethod(fused.draft_best)
    TorchDraftLogits.gatherer = staticmethod(own_tokens.gathered)
    TorchDraftLogits.joiner = staticmethod(own_tokens.joined)


def _select_eagerly() -> None:
    """Run stock EAGLE's token selection uncompiled: compiling it needs a C++ compiler."""
    from sglang.srt.speculative import spec_utils

    compiled = spec_utils._select_top_k_tokens_later
    spec_utils._select_top_k_tokens_later = getattr(
        compiled, "_torchdynamo_orig_callable", compiled
    )
