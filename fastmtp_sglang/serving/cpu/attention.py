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

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner
    from torch import Tensor


def visibility(
    req_to_token: Tensor, requests: Tensor, prefix: Tensor, tree: Tensor | None = None
) -> Tensor:
    """What rows see, as `native.passes.SEEN` says: int64 [rows, 3].

    Args:
        req_to_token: int32 [requests, context] cache slots by request and position, contiguous.
        requests: int64 [rows], each row's request.
        prefix: int64 [rows], how many keys it sees from position 0 on.
        tree: int64 [rows], bit j for the key at position prefix + j; None for none.
    """
    seen = torch.zeros(len(requests), 3, dtype=torch.int64)
    seen[:, 0] = req_to_token.data_ptr() + requests * (req_to_token.stride(0) * 4)
    seen[:, 1] = prefix
    if tree is not None:
        seen[:, 2] = tree
    return seen


class CpuAttnBackend(AttentionBackend):
    """SGLang's attention interface over the native operators.

    Args:
        runner: the model runner whose pools are read and written.
        draft_step: None for a whole model. For step i of a draft chain, the query attends to the
            committed keys and the i + 1 keys that the chain has written.
    """

    def __init__(self, runner: ModelRunner, draft_step: int | None = None) -> None:
        super().__init__()
        self.req_to_token_pool = runner.req_to_token_pool
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.max_context_len = runner.model_config.context_len
        self.draft_step = draft_step
        self.visible = torch.zeros(0, 3, dtype=torch.int64)
        engine().reserve_keys(self.req_to_token_pool.req_to_token.shape[1] + 64)

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plan this forward pass; called once before its layers."""
        if forward_batch.forward_mode.is_idle():
            self.visible = torch.zeros(0, 3, dtype=torch.int64)
            return
        requests, prefix = self._rows(forward_batch)
        self.visible = visibility(self.req_to_token_pool.req_to_token, requests, prefix)

    def _rows(self, forward_batch: ForwardBatch) -> tuple[Tensor, Tensor]:
        """Request and number of visible keys of each row, int64 [rows] each."""
        mode = forward_batch.forward_mode
        requests = forward_batch.req_pool_indices.to(torch.int64)
        seq_lens = forward_batch.seq_lens.to(torch.int64)
        if mode.is_decode():
            newest = 0 if self.draft_step is None else self.draft_step + 1
            return requests, seq_lens + newest
        if mode.is_target_verify() or mode.is_draft_extend_v2():
            if mode.is_target_verify():
                spec = forward_batch.spec_info
                if spec.topk > 1:
                    raise FastMTPError(
                        f"--speculative-eagle-topk {spec.topk}: attention on the CPU platform "
                        "verifies chains, not trees. Use --speculative-eagle-topk 1."
                    )
                n = spec.draft_token_num
                offsets = torch.arange(1, n + 1)
            else:
                # seq_lens already counts the rows that are being appended.
                n = forward_batch.input_ids.shape[0] // forward_batch.batch_size
                offsets = torch.arange(1 - n, 1)
            return requests.repeat_interleave(n), (seq_lens.unsqueeze(1) + offsets).flatten()
        extend = forward_batch.extend_seq_lens.to(torch.int64)
        ends = extend.cumsum(0)
        within = torch.arange(int(ends[-1])) - (ends - extend).repeat_interleave(extend)
        prefix = forward_batch.extend_prefix_lens.to(torch.int64).repeat_interleave(extend)
        return requests.repeat_interleave(extend), prefix + within + 1

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
            self.visible,
            scale=layer.scaling,
            window=-1 if window is None else window,
        )

    forward_decode = forward_extend

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


class CpuChainAttnBackend:
    """One attention backend for each forward pass of a draft chain: K - 1 steps after the first."""

    needs_cpu_seq_lens = False

    def __init__(self, runner: ModelRunner, num_steps: int) -> None:
        self.attn_backends = [CpuAttnBackend(runner, step) for step in range(num_steps - 1)]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plan all steps of the chain."""
        for backend in self.attn_backends:
            backend.init_forward_metadata(forward_batch)
