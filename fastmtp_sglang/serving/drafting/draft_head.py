"""Draft tokens of a batch, each request over the list of its language: the caller of the kernels.

SGLang drafts with its model's `LogitsProcessor` and an argmax over what that returns. Here the
processor runs the fused kernel instead, stores the best token id of each request in `next_ids` by
request slot, and returns one column of zeros for the argmax. SGLang then maps the column that won,
always 0, to a token id through the worker's `hot_token_id`, as it does for a reduced vocabulary:
`NextTokenIds` answers with the stored ids. So all of SGLang's drafting code stays in use, eager and
in CUDA graphs, with lists that differ from row to row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor

from fastmtp_kernels.draft_logits import DraftOptions
from fastmtp_kernels.factory import make_draft_logits
from fastmtp_kernels.slots import DraftSlots
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.routing.router import Router
from fastmtp_sglang.vocabulary.draft_vocabulary import FULL_VOCABULARY, DraftVocabulary

if TYPE_CHECKING:
    from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from torch import Tensor


class DraftHead:
    """The draft model's last layer over per-request lists.

    Attributes:
        router: which list each request slot drafts from.
        is_stale: whether the lm_head has changed since the kernel last read what it copies of it.
        batch: the batch of the present forward pass or draft; SGLang passes it to the processor,
            but not on to where the logits are computed.
        next_ids: int64 [num_slots], the latest draft token of each request slot.
    """

    def __init__(
        self,
        vocabulary: DraftVocabulary,
        lm_head: ParallelLMHead,
        processor: LogitsProcessor,
        num_slots: int,
    ) -> None:
        """Build the kernel's tables and compile it.

        Args:
            vocabulary: checked against the target.
            lm_head: the target's, shared by the draft model; this rank's share of it.
            processor: the draft model's; its class is replaced.
            num_slots: rows of SGLang's `req_to_token`.

        Raises:
            FastMTPError: the lm_head is quantized or has a bias, so that its rows cannot be read.
        """
        weight = _rows(lm_head)
        shard = lm_head.shard_indices
        every_token = torch.arange(vocabulary.vocab_size)
        slots = DraftSlots.build(
            {**vocabulary.ids, FULL_VOCABULARY: every_token},
            vocabulary.vocab_size,
            (shard.org_vocab_start_index, shard.org_vocab_end_index),
        )
        options = DraftOptions(
            scale=processor.logit_scale or 1.0,
            softcap=processor.final_logit_softcapping or 0.0,
            # What a slot without a request draws; any valid id does.
            fallback_id=int(next(iter(vocabulary.ids.values()))[0]),
            max_batch=num_slots,
        )
        self._logits = make_draft_logits(weight, slots, options)
        self._logits.warm_up()
        self._gathers = processor.do_tensor_parallel_all_gather
        self.router = Router(vocabulary, num_slots, weight.device)
        self.is_stale = False
        self.batch: ForwardBatch | None = None
        self.next_ids = torch.zeros(num_slots, dtype=torch.int64, device=weight.device)
        processor.__class__ = DraftLogitsProcessor
        processor.draft_head = self

    def score(self, hidden_states: Tensor) -> Tensor:
        """Draft one token for each request of `self.batch` and store its id.

        Args:
            hidden_states: [B, D], or [B * n, D] in a draft extension that leaves the choice of
                each request's last accepted row to the caller.

        Returns:
            float32 [rows of `hidden_states`, 1], zeros: the only candidate of each row.
        """
        assert self.batch is not None
        if self.is_stale:
            # On a GPU rows are read from the live lm_head: nothing to do, and never in a graph.
            self._logits.refresh()
            self.is_stale = False
        slots = self.batch.req_pool_indices
        rows = hidden_states.shape[0]
        if rows and len(slots):
            width = rows // len(slots)
            if width > 1:
                first = torch.arange(0, rows, width, device=slots.device)
                hidden_states = hidden_states[first + self.batch.spec_info.num_accept_tokens - 1]
            tokens = self._logits(hidden_states, self.router.lists[slots])
            if self._gathers:
                tokens = self._logits.merge(_gather(tokens.keys))
            self.next_ids[slots] = tokens.ids[:, 0]
        return torch.zeros(rows, 1, dtype=torch.float32, device=slots.device)


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
        return 1

    def __getitem__(self, topk_index: Tensor) -> Tensor:
        """Return the latest draft token of each request, int64 like `topk_index` [B, 1]."""
        head = self._draft_head
        assert head.batch is not None
        return head.next_ids[head.batch.req_pool_indices].unsqueeze(1)


def _rows(lm_head: Any) -> Tensor:
    weight = getattr(lm_head, "weight", None)
    is_plain = isinstance(weight, torch.Tensor) and weight.dim() == 2 and weight.is_floating_point()
    if not is_plain or getattr(lm_head, "bias", None) is not None:
        raise FastMTPError(
            "--speculative-token-map needs an lm_head whose rows can be read, and this target's is "
            "quantized or has a bias. Serve without it (a file in the head's directory counts too)."
        )
    return weight


def _gather(keys: Tensor) -> Tensor:
    """Keys [B, 1] of all tensor-parallel ranks, [ranks, B, 1]."""
    from sglang.srt.distributed import get_tp_group

    group = get_tp_group()
    return group.all_gather(keys, dim=0).view(group.world_size, *keys.shape)
