"""Draft logits over the full vocabulary, minus infinity outside each request's list.

The draft head of rejection sampling (--speculative-use-rejection-sampling): there a draft is drawn
from q = softmax of its logits, and verification needs all of q. Everything but the mask is
SGLang's, so this saves no time over drafting from the full vocabulary, unlike `draft_head`; lists
only keep drafts to the request's language.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor

from fastmtp_sglang.serving.drafting.draft_head import DraftLogitsProcessor
from fastmtp_sglang.serving.routing.router import Router

if TYPE_CHECKING:
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from torch import Tensor

    from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary


class MaskedDraftHead:
    """The draft model's last layer, masked.

    Attributes:
        router: which list each request slot drafts from.
        batch: the batch of the present forward pass; SGLang passes it to the processor, but not on
            to where the logits are computed.
    """

    def __init__(
        self,
        vocabulary: DraftVocabulary,
        processor: LogitsProcessor,
        num_slots: int,
        device: torch.device | str,
    ) -> None:
        """Take over `processor`, the draft model's; its class is replaced."""
        self.router = Router(vocabulary, num_slots, device)
        self.batch: ForwardBatch | None = None
        processor.__class__ = MaskedLogitsProcessor
        processor.draft_head = self

    def mask(self, logits: Tensor) -> Tensor:
        """Mask logits [B, V], or [B * n, V] of a draft extension, in place and return them."""
        assert self.batch is not None
        slots = self.batch.req_pool_indices
        if not len(slots):
            return logits
        allowed = self.router.allowed(slots)
        return (
            logits.unflatten(0, (len(slots), -1))
            .masked_fill_(~allowed.unsqueeze(1), -torch.inf)
            .flatten(0, 1)
        )


class MaskedLogitsProcessor(DraftLogitsProcessor):
    """The class that a draft model's processor gets: SGLang's logits, masked."""

    draft_head: MaskedDraftHead  # type: ignore[assignment]

    def _get_logits(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.draft_head.mask(LogitsProcessor._get_logits(self, *args, **kwargs))
