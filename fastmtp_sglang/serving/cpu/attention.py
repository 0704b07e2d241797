"""Attention on a CPU: one call of torch's flash attention for a batch, with reproducible bits.

Which cache slots each query row may see is planned once per forward pass and shared by all layers.
Decoding, chain verification and draft extension are one case: the same number n of query rows for
every request. A prefill is cut into chunks of one request's rows.

Three choices make a row's output independent, to the last bit, of the rows computed beside it, so
that a token verified among K drafts gets the logits that plain decoding would have given it:
- the query rows of one key head (group size x n) form one product, padded to a multiple of 4 rows,
  since a product of 1 to 3 rows runs through another kernel than a larger one;
- keys are padded with masked slots to a width at which MKL sums them in the same blocks as at any
  other (`_key_width`);
- there are always two products to compute: a lone one would be split among MKL's threads.
MKL's reproducible mode, which `cpu.activate` sets, keeps it from choosing kernels by the alignment
of memory. Measured over random shapes, chunkings and batches in
tests/serving/cpu/test_attention.py.

It is computed in float32 whatever the model's dtype: bfloat16 products, which oneDNN does, are
summed by how many rows they have, and a prompt's keys would depend on how its prefill was cut.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from fastmtp_sglang.errors import FastMTPError

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner

_ROW_MULTIPLE = 4
_KEY_MULTIPLE = 16
# torch's flash attention takes this many keys at a time. Of a part with 193..383 keys MKL sums each
# half by itself, of a longer one 192 keys and then the rest: such a part is padded to 384.
_KEY_PART = 512
_HALVED_ABOVE, _HALVED_BELOW = 192, 384
# torch computes this many query rows per product and thread when there are few of them.
_ROWS_PER_PRODUCT = 32
# Rows of a prefill in one call: bounds the mask (rows x keys) and skips keys of later chunks.
_PREFILL_CHUNK = 256
# Requests share a call when their key counts round up to the same power of two, at least this.
_SMALLEST_BUCKET = 64


@dataclass
class AttentionCall:
    """The query rows of b requests, n rows each, that attend in one call.

    Attributes:
        tokens: positions of the b * n rows in the flattened batch; a slice, or int64 [b * n].
        slots: cache slots of the keys, int64 [b, L]; L from `_key_width`, slot 0 beyond the end.
        visible: how many leading keys each row sees, int64 [b, n].
    """

    tokens: slice | torch.Tensor
    slots: torch.Tensor
    visible: torch.Tensor
    _masks: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)
    _rows: dict[Any, torch.Tensor] = field(default_factory=dict)
    _gathered: dict[Any, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._flat_slots = self.slots.flatten()

    def pack(self, query: torch.Tensor, key_heads: int) -> torch.Tensor:
        """The rows of this call by key head, float32 [b, key heads, rows of `mask`, head size].

        Args:
            query: [tokens, query heads, head size] of the whole batch.

        The result is overwritten by the next layer's.
        """
        b, n = self.visible.shape
        _, heads, size = query.shape
        group = heads // key_heads
        packed = self._rows.get((query.shape, key_heads))
        if packed is None:
            # Its padding rows stay zero.
            shape = (b, key_heads, _round_up(group * n, _ROW_MULTIPLE), size)
            packed = self._rows[query.shape, key_heads] = torch.zeros(shape, dtype=torch.float32)
        rows = query[self.tokens].view(b, n, key_heads, group, size).permute(0, 2, 3, 1, 4)
        packed[:, :, : group * n].view(b, key_heads, group, n, size).copy_(rows)
        return packed

    def gather(self, what: str, cache: torch.Tensor) -> torch.Tensor:
        """`what` ("keys" or "values") of this call, float32 [b, key heads, L, head size].

        Args:
            cache: [slots, key heads, head size].

        The result is overwritten by the next layer's: allocating these megabytes anew in each layer
        costs more (page faults) than filling them.
        """
        heads, size = cache.shape[1:]
        gathered = self._buffer(what, cache.dtype, heads, size)
        torch.index_select(cache, 0, self._flat_slots, out=gathered)
        if cache.dtype != torch.float32:
            gathered = self._buffer(what, torch.float32, heads, size).copy_(gathered)
        return gathered.view(*self.slots.shape, heads, size).transpose(1, 2)

    def _buffer(self, what: str, dtype: torch.dtype, heads: int, size: int) -> torch.Tensor:
        buffer = self._gathered.get((what, dtype, heads, size))
        if buffer is None:
            buffer = torch.empty(len(self._flat_slots), heads, size, dtype=dtype)
            self._gathered[what, dtype, heads, size] = buffer
        return buffer

    def mask(self, group_size: int, window: int) -> torch.Tensor:
        """Additive mask, float32 [b, 1, rows, L], rows = group_size * n padded to a multiple of 4.

        A `window` w >= 0 hides keys more than w positions behind the row; -1 hides none.
        """
        mask = self._masks.get((group_size, window))
        if mask is None:
            keys = torch.arange(self.slots.shape[1])
            visible = self.visible.unsqueeze(-1)
            hidden = keys >= visible
            if window >= 0:
                hidden |= keys < visible - 1 - window
            b, n = self.visible.shape
            rows = group_size * n
            shape = (b, 1, _round_up(rows, _ROW_MULTIPLE), len(keys))
            mask = torch.zeros(shape, dtype=torch.float32)
            mask[:, 0, :rows].view(b, group_size, n, -1).masked_fill_(
                hidden.unsqueeze(1), float("-inf")
            )
            self._masks[group_size, window] = mask
        return mask


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _key_width(length: int) -> int:
    """The number of keys to compute with where `length` are visible."""
    parts, rest = divmod(length, _KEY_PART)
    rest = _round_up(rest, _KEY_MULTIPLE)
    if _HALVED_ABOVE < rest < _HALVED_BELOW:
        rest = _HALVED_BELOW
    return parts * _KEY_PART + rest


def plan_uniform(
    req_to_token: torch.Tensor, req_pool_indices: torch.Tensor, visible: torch.Tensor
) -> list[AttentionCall]:
    """Plan a batch in which every request has the same number of query rows.

    Args:
        req_to_token: [slots of requests, context] cache slots by request and position.
        req_pool_indices: int64 [bs].
        visible: int64 [bs, n], keys that each row sees, growing along n.
    """
    lengths = visible[:, -1].tolist()
    buckets: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        buckets.setdefault(max(length - 1, _SMALLEST_BUCKET - 1).bit_length(), []).append(row)
    n = visible.shape[1]
    calls = []
    for rows in buckets.values():
        width = _key_width(max(lengths[row] for row in rows))
        if len(buckets) == 1:
            tokens: slice | torch.Tensor = slice(0, len(lengths) * n)
            chosen, seen = req_pool_indices, visible
        else:
            index = torch.tensor(rows)
            tokens = (index.unsqueeze(1) * n + torch.arange(n)).flatten()
            chosen, seen = req_pool_indices[index], visible[index]
        calls.append(AttentionCall(tokens, _slots(req_to_token, chosen, seen[:, -1], width), seen))
    return calls


def plan_prefill(
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    prefix_lens: list[int],
    extend_lens: list[int],
) -> list[AttentionCall]:
    """Plan a batch in which request i appends extend_lens[i] rows to prefix_lens[i] cached keys."""
    calls = []
    start = 0
    for request, (prefix, extend) in enumerate(zip(prefix_lens, extend_lens, strict=True)):
        for first in range(0, extend, _PREFILL_CHUNK):
            last = min(first + _PREFILL_CHUNK, extend)
            visible = torch.arange(prefix + first + 1, prefix + last + 1).unsqueeze(0)
            slots = _slots(
                req_to_token,
                req_pool_indices[request : request + 1],
                visible[:, -1],
                _key_width(prefix + last),
            )
            calls.append(AttentionCall(slice(start + first, start + last), slots, visible))
        start += extend
    return calls


def _slots(
    req_to_token: torch.Tensor, requests: torch.Tensor, lengths: torch.Tensor, width: int
) -> torch.Tensor:
    rows = req_to_token[requests, :width].to(torch.int64)
    if rows.shape[1] < width:
        rows = torch.nn.functional.pad(rows, (0, width - rows.shape[1]))
    # Positions past the end hold whatever the slot's last owner left; slot 0 is the padding page.
    return rows.masked_fill_(torch.arange(width) >= lengths.unsqueeze(1), 0)


def attend(
    call: AttentionCall,
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    output: torch.Tensor,
    *,
    scale: float,
    window: int = -1,
) -> None:
    """Write the attention output of one call into its rows of `output`.

    Args:
        call: which rows, which keys.
        query: [tokens, query heads, head size].
        key_cache: [slots, key heads, head size].
        value_cache: [slots, key heads, value head size].
        output: [tokens, query heads, value head size], written in place.
        scale: factor of the scores.
        window: sliding window, see `AttentionCall.mask`.
    """
    b, n = call.visible.shape
    heads = query.shape[1]
    key_heads, value_size = value_cache.shape[1:]
    group = heads // key_heads
    rows = call.pack(query, key_heads)
    keys = call.gather("keys", key_cache)
    values = call.gather("values", value_cache)
    if b * key_heads == 1 and rows.shape[2] <= _ROWS_PER_PRODUCT:
        rows, keys, values = (t.expand(2, -1, -1, -1) for t in (rows, keys, values))
    result = torch.nn.functional.scaled_dot_product_attention(
        rows, keys, values, attn_mask=call.mask(group, window), scale=scale
    )
    result = result[:b, :, : group * n].view(b, key_heads, group, n, value_size)
    result = result.permute(0, 3, 1, 2, 4)
    if isinstance(call.tokens, slice):
        output[call.tokens].view(b, n, key_heads, group, value_size).copy_(result)
    else:
        output[call.tokens] = result.reshape(b * n, heads, value_size).to(output.dtype)


class CpuAttnBackend(AttentionBackend):
    """SGLang's attention interface over `attend`.

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
        self.calls: list[AttentionCall] = []

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plan this forward pass; called once before its layers."""
        self.calls = self._plan(forward_batch)

    def _plan(self, forward_batch: ForwardBatch) -> list[AttentionCall]:
        mode = forward_batch.forward_mode
        req_to_token = self.req_to_token_pool.req_to_token
        requests = forward_batch.req_pool_indices
        seq_lens = forward_batch.seq_lens.to(torch.int64)
        if mode.is_idle():
            return []
        if mode.is_decode():
            newest = 0 if self.draft_step is None else self.draft_step + 1
            return plan_uniform(req_to_token, requests, (seq_lens + newest).unsqueeze(1))
        if mode.is_target_verify():
            spec = forward_batch.spec_info
            if spec.topk > 1:
                raise FastMTPError(
                    f"--speculative-eagle-topk {spec.topk}: attention on the CPU platform verifies "
                    "chains, not trees. Use --speculative-eagle-topk 1."
                )
            offsets = torch.arange(1, spec.draft_token_num + 1)
            return plan_uniform(req_to_token, requests, seq_lens.unsqueeze(1) + offsets)
        if mode.is_draft_extend_v2():
            # seq_lens already counts the rows that are being appended.
            n = forward_batch.input_ids.shape[0] // forward_batch.batch_size
            offsets = torch.arange(1 - n, 1)
            return plan_uniform(req_to_token, requests, seq_lens.unsqueeze(1) + offsets)
        return plan_prefill(
            req_to_token,
            requests,
            forward_batch.extend_prefix_lens.tolist(),
            forward_batch.extend_seq_lens.tolist(),
        )

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Append keys and values to the cache and attend; q is [tokens, heads * head size]."""
        _refuse_unsupported(layer, kwargs)
        if save_kv_cache and k is not None:
            self.token_to_kv_pool.set_kv_buffer(
                layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v
            )
        tokens = q.shape[0]
        output = q.new_zeros(tokens, layer.tp_q_head_num, layer.v_head_dim)
        query = q.reshape(tokens, layer.tp_q_head_num, layer.qk_head_dim)
        window = layer.sliding_window_size
        for call in self.calls:
            attend(
                call,
                query,
                self.token_to_kv_pool.get_key_buffer(layer.layer_id),
                self.token_to_kv_pool.get_value_buffer(layer.layer_id),
                output,
                scale=layer.scaling,
                window=-1 if window is None else window,
            )
        return output.view(tokens, -1)

    forward_decode = forward_extend

    def support_triton(self) -> bool:
        """No Triton on a CPU."""
        return False


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
