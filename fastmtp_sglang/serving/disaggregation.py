"""Prompts read by one node, answers decoded by another: what crosses beyond SGLang's own relay.

SGLang carries keys and values of target and head, the last hidden state, and the first drafts as
the columns that won. With a draft vocabulary a column says nothing elsewhere (`NextTokenIds`), so
token ids are carried in their place. A node that decodes has seen no prefill: what one starts for
its requests (the language state of their slots, penalties, logit processors) is started on arrival,
when their `output_ids` hold the first token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.runtime_context import get_context, get_disagg, get_spec
from sglang.srt.speculative.eagle_disaggregation import build_eagle_disagg_draft_input

from fastmtp_sglang.serving.drafting.draft_head import DraftHead, NextTokenIds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sglang.srt.managers.overlap_utils import FutureMap
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.speculative.eagle_info import EagleDraftInput
    from torch import Tensor

    from fastmtp_sglang.serving.verification.verification import Verification
    from fastmtp_sglang.serving.worker import FastMTPDraftWorker

_SOURCE = "fastmtp.disaggregation"
_arrivals: Arrivals | None = None


def name_drafts(drafted: EagleDraftInput, next_ids: Any) -> None:
    """On a node that prefills, let the first drafts be token ids.

    Args:
        drafted: what a prefill's draft extension leaves; `topk_index` is int64 [B, top_k].
        next_ids: the worker's `hot_token_id`.
    """
    if get_disagg().disaggregation_mode == "prefill" and isinstance(next_ids, NextTokenIds):
        drafted.topk_index = next_ids[drafted.topk_index]


def draft_input(batch: ScheduleBatch, last_tokens: Tensor, future_map: FutureMap) -> Any:
    """Draft state of requests that another node prefilled; SGLang's, after their arrival."""
    if _arrivals is None:
        return build_eagle_disagg_draft_input(batch, last_tokens, future_map)
    return _arrivals.draft_input(batch, last_tokens, future_map)


class Arrivals:
    """What the worker of a node that decodes does with requests that arrive."""

    def __init__(self, verification: Verification, draft_worker: FastMTPDraftWorker) -> None:
        """Prepare for them, before the draft worker has its head."""
        self._verification = verification
        self._draft_worker = draft_worker

    def install(self) -> None:
        """Answer for the algorithm, which SGLang asks; one worker a process, so for good."""
        global _arrivals
        _arrivals = self

    def draft_input(self, batch: ScheduleBatch, last_tokens: Tensor, future_map: FutureMap) -> Any:
        """As the function of that name."""
        self._verification.start(batch.reqs)
        head, top_k = self._draft_worker.draft_head, self._draft_worker.largest.top_k
        if head is not None:
            head.router.start(batch.req_pool_indices.tolist(), batch.reqs)
        if isinstance(head, DraftHead):
            _keep_drafts(head, batch.req_pool_indices, batch.reqs, top_k)
        # The shape in use may want fewer drafts than the next one.
        chosen = get_spec().speculative_eagle_topk
        get_context().override(_SOURCE, speculative_eagle_topk=top_k)
        try:
            return build_eagle_disagg_draft_input(batch, last_tokens, future_map)
        finally:
            get_context().override(_SOURCE, speculative_eagle_topk=chosen)


def _keep_drafts(head: DraftHead, slots: Tensor, requests: Sequence[Any], top_k: int) -> None:
    """Take token ids from requests, and leave them the columns that stand for them."""
    ids = [torch.as_tensor(request.output_topk_index[:top_k]) for request in requests]
    head.next_ids[slots, 0] = torch.stack(ids).to(head.next_ids)
    for request in requests:
        request.output_topk_index = torch.arange(top_k)
