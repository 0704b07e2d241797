"""Draft tokens of a batch, each request over its list and own tokens: the caller of the kernels.

SGLang drafts with its model's `LogitsProcessor` and an argmax, or for a tree the top-k, over what
that returns. Here the processor runs the fused kernel instead, stores the best token ids of each
request in `next_ids` by request slot, and returns a column for each of them: its log-probability
over list and own tokens, of which `path_probabilities` stands where SGLang takes a softmax over the
columns. SGLang then maps the columns that won to token ids through the worker's `hot_token_id`, as
it does for a reduced vocabulary: `NextTokenIds` answers with the stored ids. So all of SGLang's
drafting code stays in use, eager and in CUDA graphs, with lists that differ from row to row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.runtime_context import get_parallel

from fastmtp_kernels.draft_logits import DraftOptions
from fastmtp_kernels.factory import make_draft_logits
from fastmtp_kernels.slots import DraftSlots
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.routing.router import Router
from fastmtp_sglang.vocabulary.draft_vocabulary import FULL_VOCABULARY, DraftVocabulary

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from torch import Tensor

    from fastmtp_sglang.serving.drafting.lm_head_rows import LMHeadRows


# The logarithm of no probability: SGLang's checks take minus infinity for a fault.
_NEVER = -1e4


class DraftHead:
    """The draft model's last layer over per-request lists.

    Attributes:
        router: which list each request slot drafts from.
        is_stale: whether the lm_head has changed since the kernel last read what it copies of it.
        batch: the batch of the present forward pass or draft; SGLang passes it to the processor,
            but not on to where the logits are computed.
        slots: request slots of what is drafted upon, without those that fill a batch up to those of
            other ranks, which are in `batch` only.
        next_ids: int64 [num_slots, top_k, top_k], the latest draft tokens of each branch of each
            request slot; those behind what was decided are of branch 0.
    """

    def __init__(
        self,
        vocabulary: DraftVocabulary,
        rows: LMHeadRows,
        processor: LogitsProcessor,
        num_slots: int,
        top_k: int = 1,
    ) -> None:
        """Build the kernel's tables and compile it.

        Args:
            vocabulary: checked against the target.
            rows: of the target's lm_head, shared by the draft model; this rank's share of it.
            processor: the draft model's; its class is replaced.
            num_slots: rows of SGLang's `req_to_token`.
            top_k: branches of the draft tree, 1 for a chain.

        Raises:
            FastMTPError: a list is shorter than `top_k`.
        """
        _check_lists(vocabulary, top_k)
        weight, shard = rows.tensor, rows.shard
        every_token = torch.arange(vocabulary.vocab_size)
        slots = DraftSlots.build(
            {**vocabulary.ids, FULL_VOCABULARY: every_token},
            vocabulary.vocab_size,
            (shard.org_vocab_start_index, shard.org_vocab_end_index),
        )
        options = DraftOptions(
            scale=processor.logit_scale or 1.0,
            softcap=processor.final_logit_softcapping or 0.0,
            top_k=top_k,
            log_sum_exp=top_k > 1,
            # What a slot without a request draws; any valid id does.
            fallback_id=int(next(iter(vocabulary.ids.values()))[0]),
            max_batch=num_slots * top_k,
        )
        self._rows = rows
        self.router = Router(vocabulary, num_slots, weight.device)
        self._logits = make_draft_logits(weight, slots, options, self.router.own_tokens)
        self._logits.warm_up()
        self._fillers = every_token[:top_k].to(weight.device)
        self._shares = _ranks_with_other_rows(processor)
        self.is_stale = False
        self.batch: ForwardBatch | None = None
        self.slots: Tensor | None = None
        self.next_ids = torch.zeros(
            num_slots, top_k, top_k, dtype=torch.int64, device=weight.device
        )
        processor.__class__ = DraftLogitsProcessor
        processor.draft_head = self

    def score(self, hidden_states: Tensor) -> Tensor:
        """Draft top_k tokens behind each row and store their ids.

        Args:
            hidden_states: [B, D] of the B requests of `self.batch`; [B * top_k, D] of their
                branches; or [B * n, D] in a draft extension that leaves the choice of each
                request's last accepted row to the caller.

        Returns:
            float32 [rows of `hidden_states`, top_k], log-probabilities; zeros for top_k 1, where
            there is nothing to compare.
        """
        assert self.batch is not None
        if self.is_stale:
            # On a GPU rows are read from the live lm_head: nothing to do, and never in a graph.
            self._rows.refresh()
            self._logits.refresh()
            self.is_stale = False
        slots = self.batch.req_pool_indices
        rows, top_k = hidden_states.shape[0], self._logits.options.top_k
        columns = torch.zeros(rows, top_k, dtype=torch.float32, device=slots.device)
        # The ranks that share requests are idle together, maybe with rows up to those of others.
        if not rows or not len(slots) or self.batch.forward_mode.is_idle():
            return columns
        width, lists = rows // len(slots), self.router.lists[slots]
        chosen: Tensor | slice = slice(None)
        request_slots = slots
        if width > 1 and self.batch.forward_mode.is_decode():
            lists = lists.repeat_interleave(width)
            if self.router.own_tokens is not None:
                request_slots = slots.repeat_interleave(width)
        elif width > 1:
            first = torch.arange(0, rows, width, device=slots.device)
            chosen, width = first + self.batch.spec_info.num_accept_tokens - 1, 1
        tokens = self._logits(hidden_states[chosen], lists, request_slots)
        if self._shares is not None:
            shares = (_gather(x, self._shares) for x in (tokens.keys, tokens.log_sum_exp))
            tokens = self._logits.merge(*shares)
        ids = tokens.ids
        if tokens.log_sum_exp is not None:
            shares = tokens.scores - tokens.log_sum_exp.unsqueeze(1)
            # Nothing is likely after a hidden state that is not a number; yet siblings must differ.
            ids = torch.where(tokens.scores.isneginf(), self._fillers, ids)
            columns[chosen] = shares.nan_to_num(nan=_NEVER, neginf=_NEVER).clamp(max=0.0)
        self.next_ids[slots, :width] = ids.view(len(slots), width, top_k)
        return columns


class DraftLogitsProcessor(LogitsProcessor):
    """The class that a draft model's processor gets; all but the scoring is SGLang's."""

    draft_head: DraftHead

    def forward(
        self,
        input_ids: Tensor,
        hidden_states: Tensor,
        lm_head: Any,
        logits_metadata: ForwardBatch,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Remember the batch; SGLang reduces it to what logits need before they are computed."""
        self.draft_head.batch = logits_metadata
        return super().forward(input_ids, hidden_states, lm_head, logits_metadata, *args, **kwargs)

    def _get_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.draft_head.score(hidden_states)


class NextTokenIds:
    """Stands where SGLang expects the map from indices of a reduced vocabulary to token ids."""

    def __init__(self, draft_head: DraftHead) -> None:
        self._draft_head = draft_head

    def __len__(self) -> int:
        """Width of the logits."""
        return self._draft_head.next_ids.shape[2]

    def __getitem__(self, topk_index: Tensor) -> Tensor:
        """Return token ids for columns int64 [B, top_k], or [B * top_k, top_k] of all branches."""
        head = self._draft_head
        slots = head.slots
        assert slots is not None
        width = len(topk_index) // max(len(slots), 1)
        ids = head.next_ids[slots, :width].flatten(0, 1)
        return ids.gather(1, topk_index)


def path_probabilities(
    next_token_logits: Tensor, sampling_info: Any, use_rejection_sampling: bool
) -> Tensor:
    """What the columns of `DraftHead.score` say; takes the place of `renorm_draft_probs`."""
    return next_token_logits.exp()


def _check_lists(vocabulary: DraftVocabulary, top_k: int) -> None:
    for name, ids in vocabulary.ids.items():
        if len(ids) < top_k:
            raise FastMTPError(
                f"--speculative-eagle-topk {top_k}: the list {name} of the draft vocabulary "
                f"{vocabulary.origin} has only {len(ids)} tokens. Give a number up to that."
            )


def _ranks_with_other_rows(processor: LogitsProcessor) -> Any:
    """SGLang's group of the ranks that share an lm_head, None where each has all of it.

    With --enable-dp-lm-head only the ranks that share a request's attention do.
    """
    if not processor.do_tensor_parallel_all_gather:
        return None
    parallel = get_parallel()
    return parallel.attn_tp_group if processor.use_attn_tp_group else parallel.tp_group


def _gather(tensor: Tensor | None, group: Any) -> Tensor | None:
    """One tensor [B, ...] of each rank, [ranks, B, ...]."""
    if tensor is None:
        return None
    return group.all_gather(tensor, dim=0).view(group.world_size, *tensor.shape)
