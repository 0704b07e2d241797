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
from sglang.srt.speculative import eagle_worker_common, eagle_worker_v2, spec_utils
from sglang.srt.speculative.eagle_info import EagleDraftInput, EagleVerifyInput
from sglang.srt.speculative.spec_utils import fast_topk
from sglang.srt.utils.async_probe import maybe_detect_inf, maybe_detect_nan

from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.serving.cpu import replay
from fastmtp_sglang.serving.cpu.attention import (
    CpuAttnBackend,
    chains,
    rows_of_draft_step,
    rows_of_verification,
    visibility,
)
from fastmtp_sglang.serving.cpu.ops import assign_extend_cache_locs
from fastmtp_sglang.serving.cpu.packed_linear import PackedLMHeadMethod
from fastmtp_sglang.serving.cpu.tree import build_tree
from fastmtp_sglang.serving.drafting.draft_head import DraftHead, NextTokenIds
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
        self._draft_head, self._next_ids = draft_head, NextTokenIds(draft_head)
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

    def can_draft(self, num_steps: int) -> bool:
        """Whether the passes behind the first drafts are recorded, of which K - 1 are needed."""
        return num_steps == 1 or replay.tape(self._head, ForwardMode.DECODE) is not None

    def draft(self, batch: ScheduleBatch, shape: TreeShape) -> EagleVerifyInput:
        """Draft upon the first drafts, which the step before has made; what is to be verified.

        Args:
            batch: to be decoded.
            shape: of a chain or a tree of at least one draft.
        """
        first, top_k = batch.spec_info, shape.top_k
        batch.forward_mode = ForwardMode.DECODE
        self._draft_head.batch, self._draft_head.slots = batch, batch.req_pool_indices
        shares, ids = first.topk_p, self._next_ids[first.topk_index]
        states, scores = first.hidden_states, None
        # Of each step probabilities of paths, tokens, and which drafts the next one goes on from.
        drafted: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        for step in range(shape.num_steps):
            chosen, states, scores, tree_info = spec_utils.select_top_k_tokens(
                step, shares, ids, states, scores, top_k
            )
            for kept, part in zip(drafted, tree_info, strict=True):
                kept.append(part)
            if step == shape.num_steps - 1:
                break
            states = self._draft_step(batch, shape, step, chosen, states)
            columns = self._draft_head.score(states)
            shares, best = fast_topk(columns.exp(), top_k, dim=-1)
            ids = self._next_ids[best]
        if top_k == 1:
            return _chain(batch, torch.cat(drafted[1], 1))
        verified = eagle_worker_v2.organize_draft_results(*drafted, shape.num_rows)
        return _tree(batch, shape, *verified)

    def _draft_step(
        self, batch: ScheduleBatch, shape: TreeShape, step: int, ids: Tensor, states: Tensor
    ) -> Tensor:
        """The head's output for the drafts of one step, [B * top_k, D]."""
        requests, seq_lens = batch.req_pool_indices.long(), batch.seq_lens.long()
        num_steps, top_k = shape.num_steps, shape.top_k
        # Each branch has K neighbouring slots behind what is decided.
        columns = seq_lens.unsqueeze(1) + torch.arange(step, top_k * num_steps, num_steps)
        slots = self._req_to_token[requests.unsqueeze(1), columns]
        batch.out_cache_loc = slots.long().flatten()
        seen = rows_of_draft_step(requests, seq_lens, top_k, num_steps, step)
        positions = (seq_lens + step).unsqueeze(1).expand_as(columns).flatten()
        return self._sweep(
            *(self._head, batch, ids, positions),
            visibility(self._req_to_token, *seen),
            states,
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
        # Of an expanded tensor even `flatten` may be a view whose rows are one.
        given = {name: rows.contiguous() for name, rows in of_rows.items()}
        return tape.sweep(len(ids), [x.contiguous() for x in inputs], **given)

    def _logits(self, hidden_states: Tensor) -> Tensor:
        """Float32 [rows, V]."""
        model = self._target.model
        logits = model.lm_head.quant_method.apply(model.lm_head, hidden_states)
        return logits[:, : model.logits_processor.vocab_size].float()


def _chain(batch: ScheduleBatch, drafts: Tensor) -> EagleVerifyInput:
    """What is verified of chains, int64 [B, K]."""
    size, num_steps = drafts.shape
    n = num_steps + 1
    next_row = torch.arange(1, n + 1)
    next_row[-1] = -1
    return _verify_input(
        TreeShape(num_steps, 1, n),
        draft_token=_behind_the_decided(batch, drafts),
        custom_mask=torch.ones(n, n, dtype=torch.bool).tril().flatten().repeat(size),
        positions=_count_from(batch.seq_lens, n),
        retrieve_index=torch.arange(n * size).view(size, n),
        retrieve_next_token=next_row.repeat(size, 1),
        retrieve_next_sibling=torch.full((size, n), -1),
    )


def _tree(
    batch: ScheduleBatch, shape: TreeShape, parents: Tensor, chosen: Tensor, drafts: Tensor
) -> EagleVerifyInput:
    """What is verified of trees, of which SGLang has chosen the likeliest drafts."""
    size, n = len(drafts), shape.num_rows
    mask = torch.empty(size * n * n, dtype=torch.bool)
    positions = torch.empty(size * n, dtype=torch.int64)
    index, child, sibling = torch.empty(3, size, n, dtype=torch.int64)
    of_drafts = parents, chosen, batch.seq_lens
    written = mask, positions, index, child, sibling
    build_tree(*of_drafts, *written, shape.top_k, shape.num_steps, n, tree_mask_mode=None)
    return _verify_input(
        shape,
        draft_token=_behind_the_decided(batch, drafts),
        custom_mask=mask,
        positions=positions,
        retrieve_index=index,
        retrieve_next_token=child,
        retrieve_next_sibling=sibling,
    )


def _behind_the_decided(batch: ScheduleBatch, drafts: Tensor) -> Tensor:
    """Drafts [B, n - 1] behind the last token of each request, [B * n]."""
    decided = batch.spec_info.bonus_tokens.to(torch.int64).unsqueeze(1)
    return torch.cat((decided, drafts), 1).flatten()


def _verify_input(shape: TreeShape, **fields: Tensor) -> EagleVerifyInput:
    """SGLang's description of the drafts of a shape."""
    return EagleVerifyInput(
        **fields,
        retrieve_cum_len=None,
        spec_steps=shape.num_steps,
        topk=shape.top_k,
        draft_token_num=shape.num_rows,
        capture_hidden_mode=CaptureHiddenMode.FULL,
        seq_lens_sum=None,
        seq_lens_cpu=None,
    )


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
