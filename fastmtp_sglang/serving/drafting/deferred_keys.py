"""The head's keys of steps without drafts (K = 0), written some steps later, in one pass.

A draft reads the head's keys of everything before it, so a step that drafts nothing still owes the
keys of the token that it produced. A pass for one token costs nearly what a draft step costs; but
in a head of one layer a token's keys depend on no other token, so those of many steps and requests
can be written together, by the part of the head that comes before its attention.

They must be there before the next draft, and before their cache slots change hands: that is before
a prefill, and as soon as the batch holds other requests. The prefix cache may hold slots whose keys
are owed; nobody reads them without a prefill.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.speculative.eagle_info import EagleDraftExtendInput

from fastmtp_sglang.serving.cpu.kv_pool import CpuMHATokenToKVPool

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.utils import GenerationBatchResult
    from sglang.srt.model_executor.model_runner import ModelRunner
    from torch import Tensor

# Rows of one pass. More would make the pass long, and save next to nothing.
_MOST_ROWS = 128


class DeferredKeys:
    """Owed keys, and the pass that writes them."""

    def __init__(self, runner: ModelRunner) -> None:
        """Owe nothing yet.

        Args:
            runner: the head's, one of those that `possible` accepts.
        """
        self._model = runner.model
        self._context = ForwardContext(attn_backend=_KeysOnly(runner.token_to_kv_pool))
        self._requests: list[Req] = []
        self._steps: list[tuple[Tensor, ...]] = []

    @staticmethod
    def possible(runner: ModelRunner) -> bool:
        """Whether the head has one attention layer, of plain keys and values and positions."""
        layers = [m for m in runner.model.modules() if isinstance(m, RadixAttention)]
        pool = runner.token_to_kv_pool
        return (
            len(layers) == 1
            # Those derived from it keep other things, or keep them elsewhere.
            and type(pool) in (MHATokenToKVPool, CpuMHATokenToKVPool)
            and pool.dtype == runner.dtype
            and not runner.model_config.model_is_mrope
        )

    def owe(self, batch: ScheduleBatch, result: GenerationBatchResult) -> None:
        """Note what a verification without drafts leaves to be written, one row per request.

        Args:
            batch: as verified, with the lengths and the cache slots of that.
            result: of the verification; hidden_states [B, D] and next_token_ids [B].
        """
        batch_size = len(batch.reqs)
        if batch.reqs != self._requests or (len(self._steps) + 1) * batch_size > _MOST_ROWS:
            self.write()
            self._requests = list(batch.reqs)
        # What a CUDA graph returned is overwritten by the next step, and the lengths may grow.
        self._steps.append(
            (
                result.next_token_ids.to(torch.int64, copy=True),
                batch.seq_lens.to(torch.int64, copy=True),
                batch.out_cache_loc.clone(),
                result.logits_output.hidden_states.clone(),
            )
        )

    @torch.no_grad()
    def write(self) -> None:
        """Write what is owed."""
        if not self._steps:
            return
        tokens, positions, slots, hidden_states = map(torch.cat, zip(*self._steps, strict=True))
        self._steps, self._requests = [], []
        batch = ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            batch_size=len(tokens),
            input_ids=tokens,
            # Each row for itself; only attention would ask which request it belongs to.
            req_pool_indices=torch.zeros_like(tokens),
            seq_lens=positions + 1,
            seq_lens_sum=0,
            out_cache_loc=slots,
            positions=positions,
            spec_info=EagleDraftExtendInput(hidden_states=hidden_states),
        )
        with forward_context(self._context):
            try:
                self._model.forward(tokens, positions, batch)
            except _KeysWritten:
                residual_batch.clear(batch)
            else:
                raise AssertionError("the head computed its output without attention")


class _KeysWritten(Exception):
    """The rest of the forward pass is not needed."""


class _KeysOnly(AttentionBackend):
    """Attention that stores its keys and values and then leaves the model."""

    def __init__(self, pool: MHATokenToKVPool) -> None:
        super().__init__()
        self.token_to_kv_pool = pool

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Store k and v [N, key heads, head size] at `forward_batch.out_cache_loc`.

        Raises:
            _KeysWritten: always. Without `save_kv_cache` the model has stored them itself.
        """
        if save_kv_cache:
            write = KVWriteLoc(forward_batch.out_cache_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, write, k, v)
        raise _KeysWritten
