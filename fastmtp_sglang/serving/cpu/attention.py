"""Attention on a CPU: SGLang's interface over the native operators that read the cache in place.

What each query row sees is planned once per forward pass and shared by all layers: the address of
its request's cache slots, how many of them from the first on, and a bit mask of the 64 behind those
(a branch of a draft tree; 0 for a chain). A row's output depends on its own keys alone, to the last
bit, so a token verified among K drafts gets the logits that plain decoding would have given it,
wherever its prompt was cut and whatever shares its batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.cpu.native.engine import engine
from fastmtp_sglang.serving.cpu.native.passes import SEEN
from fastmtp_sglang.serving.cpu.visibility import of_drafted_branches, of_verified_tree

if TYPE_CHECKING:
    from sglang.srt.layers.attention.verify_mask import VerifyMask
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner
    from torch import Tensor


def visibility(
    req_to_token: Tensor, requests: Tensor, prefix: Tensor, tree: Tensor | None = None
) -> Tensor:
    """What rows see, as `native.passes.SEEN` says: int64 [rows, SEEN].

    Args:
        req_to_token: int32 [requests, context] cache slots by request and position, contiguous.
        requests: int64 [rows], each row's request.
        prefix: int64 [rows], how many keys it sees from position 0 on.
        tree: int64 [rows], bit j for the key at position prefix + j; None for none.
    """
    seen = torch.zeros(len(requests), SEEN, dtype=torch.int64)
    seen[:, 0] = req_to_token.data_ptr() + requests * (req_to_token.stride(0) * 4)
    seen[:, 1] = prefix
    if tree is not None:
        seen[:, 2] = tree
    return seen


def rows_of_verification(
    requests: Tensor, seq_lens: Tensor, verify_input: Any
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What rows that are verified see, as `visibility` takes it.

    Args:
        requests: integer [B].
        seq_lens: integer [B], keys before the rows'.
        verify_input: SGLang's `EagleVerifyInput` of n rows a request: a chain, a tree or one row.
    """
    n = verify_input.draft_token_num
    if verify_input.topk == 1 or n == 1:
        return *chains(requests, seq_lens, n), None
    # Behind them may be requests that fill the batch up to those of other ranks.
    size = len(verify_input.custom_mask) // (n * n)
    seen = of_verified_tree(seq_lens[:size], verify_input.custom_mask, n)
    rows = requests[:size].long().repeat_interleave(n)
    return rows, seen.prefix.flatten(), seen.tree.flatten()


def rows_of_draft_step(
    requests: Tensor, seq_lens: Tensor, topk: int, num_steps: int, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What the branches of a draft step see, as `visibility` takes it; int64 [B] both."""
    seen = of_drafted_branches(seq_lens, topk, num_steps, step)
    return requests.repeat_interleave(topk), seen.prefix.flatten(), seen.tree.flatten()


def chains(requests: Tensor, seq_lens: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """What n rows a request see, behind integer seq_lens [B] keys: each a key more."""
    requests, prefix = requests.long(), seq_lens.long().unsqueeze(1) + torch.arange(1, n + 1)
    # `repeat_interleave` takes ten times as long.
    return requests.unsqueeze(1).expand_as(prefix).flatten(), prefix.flatten()


class CpuAttnBackend(AttentionBackend):
    """SGLang's attention interface over the native operators.

    Args:
        runner: the model runner whose pools are read and written.
    """

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__()
        self.req_to_token_pool = runner.req_to_token_pool
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.max_context_len = runner.model_config.context_len
        self.visible = torch.zeros(0, SEEN, dtype=torch.int64)
        engine().reserve_keys(self.req_to_token_pool.req_to_token.shape[1] + 64)

    @property
    def verify_mask(self) -> VerifyMask:
        """Asks for the mask that `of_verified_tree` reads; SGLang allocates one for each tree."""
        from sglang.kernels.ops.speculative.spec_tree import TreeMaskMode
        from sglang.srt.layers.attention.verify_mask import VerifyMask

        return VerifyMask(torch.empty(0, dtype=torch.bool), TreeMaskMode.QLEN_ONLY, max_bs=0)

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plan this forward pass; called once before its layers."""
        if forward_batch.forward_mode.is_idle():
            self.visible = torch.zeros(0, SEEN, dtype=torch.int64)
            return
        self.visible = visibility(self.req_to_token_pool.req_to_token, *self._rows(forward_batch))

    def _rows(self, forward_batch: ForwardBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Request, number of leading keys, and bits of each row, int64 [rows] each."""
        mode = forward_batch.forward_mode
        requests = forward_batch.req_pool_indices.to(torch.int64)
        seq_lens = forward_batch.seq_lens.to(torch.int64)
        if mode.is_decode():
            return requests, seq_lens, None
        if mode.is_target_verify():
            return rows_of_verification(requests, seq_lens, forward_batch.spec_info)
        if mode.is_draft_extend_v2():
            # seq_lens already counts the rows that are being appended.
            n = forward_batch.input_ids.shape[0] // forward_batch.batch_size
            return *chains(requests, seq_lens - n, n), None
        extend = forward_batch.extend_seq_lens.to(torch.int64)
        ends = extend.cumsum(0)
        within = torch.arange(int(ends[-1])) - (ends - extend).repeat_interleave(extend)
        prefix = forward_batch.extend_prefix_lens.to(torch.int64).repeat_interleave(extend)
        return requests.repeat_interleave(extend), prefix + within + 1, None

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Append keys and values to the cache and attend; q is [tokens, heads * head size]."""
        _refuse_unsupported(layer, kwargs)
        tokens = q.shape[0]
        key_cache = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        value_cache = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        if save_kv_cache and k is not None:
            keys, values = (_rows_of(t, tokens) for t in (k, v))
            engine().keep(keys, values, key_cache, value_cache, forward_batch.out_cache_loc)
        window = layer.sliding_window_size
        return engine().attend(
            _rows_of(q, tokens).unflatten(1, (layer.tp_q_head_num, layer.qk_head_dim)),
            key_cache,
            value_cache,
            self._visible_to(tokens),
            scale=layer.scaling,
            window=-1 if window is None else window,
        )

    forward_decode = forward_extend

    def _visible_to(self, rows: int) -> Tensor:
        """What was planned, and for rows that fill a batch up to those of other ranks one key."""
        missing = rows - len(self.visible)
        if not missing:
            return self.visible
        slots = self.req_to_token_pool.req_to_token
        one = torch.zeros(missing, dtype=torch.int64)
        return torch.cat((self.visible, visibility(slots, one, one + 1)))

    def get_cpu_graph_seq_len_fill_value(self) -> int:
        """Keys of a row that fills a batch up to those of other ranks: one, of any request."""
        return 1

    def support_triton(self) -> bool:
        """No Triton on a CPU."""
        return False


def _rows_of(x: Tensor, tokens: int) -> Tensor:
    """x as [tokens, width] with contiguous rows, without a copy where it lies so."""
    if x.dim() == 3 and x.stride(2) == 1 and x.stride(1) == x.shape[2]:
        return x.flatten(1)
    return x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(tokens, -1)


def _refuse_unsupported(layer: RadixAttention, kwargs: dict[str, Any]) -> None:
    unsupported = [name for name, value in kwargs.items() if value is not None]
    if layer.is_cross_attention or layer.attn_type == AttentionType.ENCODER_ONLY:
        unsupported.append("cross or encoder attention")
    if layer.logit_cap:
        unsupported.append(f"a cap of {layer.logit_cap} on attention scores")
    if unsupported:
        raise FastMTPError(
            f"This model's attention needs {', '.join(unsupported)}, which the CPU platform of "
            "fastmtp-sglang does not have. Serve it on a GPU, or set FASTMTP_CPU=0 to use SGLang's "
            "own CPU engine."
        )


class CpuDraftAttnBackend:
    """One attention backend for each forward pass of a draft: K - 1 steps after the first."""

    needs_cpu_seq_lens = False

    def __init__(self, runner: ModelRunner, topk: int, num_steps: int) -> None:
        self._shape = topk, num_steps
        self.attn_backends = [CpuAttnBackend(runner) for _ in range(num_steps - 1)]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plan all steps.

        Where pages hold more than one slot SGLang begins each branch with a page of its own, which
        attention by pages needs; ours wants all branches within 64 slots.
        """
        topk, num_steps = self._shape
        requests, seq_lens = forward_batch.req_pool_indices.long(), forward_batch.seq_lens.long()
        for step, backend in enumerate(self.attn_backends):
            req_to_token = backend.req_to_token_pool.req_to_token
            if topk > 1 and step == 0:
                columns = seq_lens.unsqueeze(1) + torch.arange(topk * num_steps)
                slots = req_to_token[requests.unsqueeze(1), columns]
                forward_batch.out_cache_loc = slots.long().flatten()
            seen = rows_of_draft_step(requests, seq_lens, topk, num_steps, step)
            backend.visible = visibility(req_to_token, *seen)
