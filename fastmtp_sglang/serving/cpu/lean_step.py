"""A decoding step of an ordinary batch on a CPU, from one native sweep to the next.

A step of a small model takes some ten milliseconds, and a third of that is Python of SGLang's: for
each of draft, verification and draft extension it makes a forward batch, plans attention, and walks
through model runner, model and logits processor, for what two sweeps of a tape and a product
compute. Here that is done directly. What decides about tokens (sampling, penalties, seeds, trees)
and all bookkeeping stays SGLang's and ours; what is returned is what SGLang's worker returns, to
the last bit.

Batches that want more of a step (grammars, log-probabilities, hidden states), and models that are
not recorded, go SGLang's way, as does the first step of each, which records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.dp_attention import is_dp_attention_enabled
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardMode
from sglang.srt.models.gemma3_causal import Gemma3ForCausalLM
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.qwen2 import Qwen2ForCausalLM
from sglang.srt.models.qwen3 import Qwen3ForCausalLM
from sglang.srt.runtime_context import get_lora, get_parallel
from sglang.srt.speculative import eagle_worker_common
from sglang.srt.speculative.eagle_info import EagleDraftInput, EagleVerifyInput
from sglang.srt.speculative.spec_utils import fast_topk
from sglang.srt.utils.async_probe import maybe_detect_inf, maybe_detect_nan

from fastmtp_sglang.serving.cpu import replay
from fastmtp_sglang.serving.cpu.attention import (
    CpuAttnBackend,
    chains,
    rows_of_verification,
    visibility,
)
from fastmtp_sglang.serving.cpu.ops import assign_extend_cache_locs
from fastmtp_sglang.serving.cpu.packed_linear import PackedLMHeadMethod
from fastmtp_sglang.serving.drafting.draft_head import DraftHead
from fastmtp_sglang.serving.drafting.head_model import FastMTPHead

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.model_executor.model_runner import ModelRunner
    from torch import Tensor

# Those whose `forward` is their body and their logits processor, and nothing in between.
_BODY_AND_LOGITS = (LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Gemma3ForCausalLM)


class LeanStep:
    """Verifies, extends and drafts with the tapes of a target and its head."""

    def __init__(self, target: ModelRunner, draft: ModelRunner, draft_head: DraftHead) -> None:
        """Take what `possible` accepts."""
        self._target, self._head = target, draft.model
        self._draft_head = draft_head
        self._kv_allocator = target.token_to_kv_pool_allocator
        self._req_to_token = target.req_to_token_pool.req_to_token

    @staticmethod
    def possible(target: ModelRunner, draft: ModelRunner, draft_head: Any) -> bool:
        """Whether all that a step computes is a sweep or a product on this machine alone."""
        model, head = target.model, draft.model
        return (
            type(target.attn_backend) is CpuAttnBackend
            and type(model) in _BODY_AND_LOGITS
            and type(head) is FastMTPHead
            and isinstance(draft_head, DraftHead)
            and get_parallel().tp_size == get_parallel().pp_size == 1
            and not is_dp_attention_enabled()
            and not get_lora().enable_lora
            and target.watermark_state is None
            and _is_plain(model.logits_processor)
            and isinstance(model.lm_head.quant_method, PackedLMHeadMethod)
            # SGLang scores Gemma's hidden states with its embedding, whatever its lm_head is.
            and (type(model) is not Gemma3ForCausalLM or model.lm_head is model.model.embed_tokens)
        )

    def suits(self, batch: ScheduleBatch) -> bool:
        """Whether a batch wants nothing but tokens, and the target's pass is recorded."""
        return not (
            batch.forward_mode.is_idle()
            or batch.has_grammar
            or batch.return_logprob
            or batch.return_hidden_states
            or replay.tape(self._target.model.model, ForwardMode.TARGET_VERIFY) is None
        )

    def can_extend(self) -> bool:
        """Whether the head's pass is recorded too."""
        return replay.tape(self._head, ForwardMode.DRAFT_EXTEND_V2) is not None

    def draft_one(self, batch: ScheduleBatch) -> EagleVerifyInput:
        """What is verified of a chain of one draft, which the step before has made."""
        first = batch.spec_info
        self._draft_head.batch = batch
        slots = batch.req_pool_indices
        drafts = self._draft_head.next_ids[slots, 0, :1]
        decided = first.bonus_tokens.to(torch.int64).unsqueeze(1)
        size = len(slots)
        next_row = torch.full((size, 2), -1)
        next_row[:, 0] = 1
        return EagleVerifyInput(
            draft_token=torch.cat((decided, drafts), 1).flatten(),
            custom_mask=torch.tensor([True, False, True, True]).repeat(size),
            positions=_count_from(batch.seq_lens, 2),
            retrieve_index=torch.arange(2 * size).view(size, 2),
            retrieve_next_token=next_row,
            retrieve_next_sibling=torch.full((size, 2), -1),
            retrieve_cum_len=None,
            spec_steps=1,
            topk=1,
            draft_token_num=2,
            capture_hidden_mode=CaptureHiddenMode.FULL,
            seq_lens_sum=None,
            seq_lens_cpu=None,
        )

    def verify(self, batch: ScheduleBatch) -> GenerationBatchResult:
        """What SGLang's `run_eagle_verify` returns for `batch.spec_info`."""
        verify_input: EagleVerifyInput = batch.spec_info
        n, size = verify_input.draft_token_num, len(batch.seq_lens)
        batch.forward_mode = ForwardMode.TARGET_VERIFY
        batch.input_ids = verify_input.draft_token
        batch.out_cache_loc = assign_extend_cache_locs(
            batch.req_pool_indices, self._req_to_token, batch.seq_lens, n
        )
        seen = rows_of_verification(batch.req_pool_indices, batch.seq_lens, verify_input)
        hidden_states = self._sweep(
            *(self._target.model.model, batch, verify_input.draft_token, verify_input.positions),
            visibility(self._req_to_token, *seen),
        )
        output = LogitsProcessorOutput(self._logits(hidden_states), hidden_states=hidden_states)
        maybe_detect_nan(output.next_token_logits, "verify: target model logits")
        maybe_detect_inf(output.next_token_logits, "verify: target model logits")
        predict, accept_lens, accept_index = eagle_worker_common.eagle_sample(
            verify_input, batch, output, None
        )
        accepted = predict[accept_index.long()]
        last = accept_lens.long().unsqueeze(1) - 1
        bonus_tokens = accepted.gather(1, last).squeeze(1).to(torch.int32)
        if verify_input.topk > 1 and n > 1:
            predict = eagle_worker_common._finalize_accept_tree_path(
                *(batch, accept_index, accept_lens, predict, output, size),
                token_to_kv_pool_allocator=self._kv_allocator,
                num_draft_tokens=n,
            )
        return GenerationBatchResult(
            logits_output=output,
            next_token_ids=predict,
            speculative_num_draft_tokens=n,
            next_draft_input=EagleDraftInput(bonus_tokens=bonus_tokens),
            accept_lens=accept_lens,
            accept_index=accept_index,
            new_seq_lens=batch.seq_lens + accept_lens,
        )

    def extend(self, batch: ScheduleBatch, result: GenerationBatchResult, top_k: int) -> None:
        """Write the head's keys, and the next step's first drafts into `result.next_draft_input`.

        Args:
            batch: as `verify` left it.
            result: of the verification.
            top_k: first drafts of a request.
        """
        size = len(batch.seq_lens)
        n = len(result.next_token_ids) // size
        batch.forward_mode = ForwardMode.DRAFT_EXTEND_V2
        states = self._sweep(
            *(self._head, batch, result.next_token_ids, _count_from(batch.seq_lens, n)),
            visibility(self._req_to_token, *chains(batch.req_pool_indices, batch.seq_lens, n)),
            result.logits_output.hidden_states,
        )
        states = states[torch.arange(0, size * n, n) + result.accept_lens - 1]
        self._draft_head.batch = batch
        shares = self._draft_head.score(states)
        following = result.next_draft_input
        if top_k == 1:
            following.topk_index = torch.zeros(size, 1, dtype=torch.int64)
            following.topk_p = torch.ones(size, 1)
        else:
            following.topk_p, following.topk_index = fast_topk(shares.exp(), top_k, dim=-1)
        following.hidden_states = states

    def _sweep(
        self,
        owner: torch.nn.Module,
        batch: ScheduleBatch,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        *inputs: Tensor,
    ) -> Tensor:
        """The output of a recorded pass, in the batch's forward mode."""
        tape = replay.tape(owner, batch.forward_mode)
        assert tape is not None  # `suits` has seen it
        of_rows = {
            "ids": ids.to(torch.int64),
            "positions": positions.to(torch.int64),
            "slots": batch.out_cache_loc,
            "visible": visible,
        }
        return tape.sweep(len(ids), [x.contiguous() for x in inputs], **of_rows)

    def _logits(self, hidden_states: Tensor) -> Tensor:
        """Float32 [rows, V]."""
        model = self._target.model
        logits = model.lm_head.quant_method.apply(model.lm_head, hidden_states)
        return logits[:, : model.logits_processor.vocab_size].float()


def _is_plain(processor: LogitsProcessor) -> bool:
    """Whether logits are the lm_head's product and nothing else."""
    return (
        type(processor) is LogitsProcessor
        and processor.logit_scale is None
        and processor.final_logit_softcapping is None
        and not processor.use_fp32_lm_head
        and not processor.do_tensor_parallel_all_gather
    )


def _count_from(first: Tensor, n: int) -> Tensor:
    """first, first + 1, ..., first + n - 1 of each entry, int64 [entries * n]."""
    return (first.to(torch.int64).unsqueeze(1) + torch.arange(n)).flatten()
