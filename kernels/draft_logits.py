"""The interface of the draft head's last layer: best tokens of every row, each over its own list.

``hidden [B, D]`` and a language id a row go in, ``DraftTokens`` come out; the logits are never
written. ``TritonDraftLogits`` (GPU) and ``TorchDraftLogits`` (CPU) implement it, and
``factory.make_draft_logits`` picks one. Everything is validated at construction, once, when the
model is loaded; a call checks nothing on the device and never waits for it, so that it can be
captured in a CUDA graph and replayed with other hidden states and other languages.

The rules, the same for both implementations and for the float64 reference:

- score = softcap(scale * (head row . hidden)) in float32, softcap(x) = cap * tanh(x / cap);
- a row's candidates are the tokens of its list and, where given, the request's own tokens, which
  that list lacks (``own_tokens``): both are scored alike, and the log-sum-exp is over both;
- equal scores go to the lowest token id, -0 equals +0;
- a score of NaN or -inf is no candidate, and counts nothing in the log-sum-exp;
- a row with fewer than k candidates (an empty list, language -1, a NaN hidden state) is filled up
  with the fallback id at score -inf.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmtp_kernels.keys import encode_keys
from fastmtp_kernels.slots import DraftSlots

MAX_TOP_K = 8
"""Top-k is k passes over keys in registers, which is only sensible for a small k."""

OWN_TOKENS = (0, 64, 128, 256)
"""How many own tokens may be kept for a request slot and list: whole tiles of the GPU's kernel."""

NO_TOKEN = -1
"""The id of a free place among own tokens. Free places follow the used ones."""


@dataclass(frozen=True)
class DraftTokens:
    """The best tokens of every row, best first.

    Attributes:
        ids: int64 [B, k], token ids of the target's vocabulary.
        scores: float32 [B, k], logits after scale and softcap.
        log_sum_exp: float32 [B] over the row's candidates, or None unless asked for at
            construction. ``exp(score - log_sum_exp)`` is the draft's probability q over them.
        packed: what ``keys`` is, where it was computed anyway.
    """

    ids: Tensor
    scores: Tensor
    log_sum_exp: Tensor | None
    packed: Tensor | None = None

    @property
    def keys(self) -> Tensor:
        """Ids and scores in one number (``fastmtp_kernels.keys``), int64 [B, k].

        What tensor-parallel ranks exchange.
        """
        return encode_keys(self.scores, self.ids) if self.packed is None else self.packed


@dataclass(frozen=True)
class DraftOptions:
    """What the target's head does to its logits, and what the caller wants of them.

    Attributes:
        scale: factor on the logits (SGLang's ``logit_scale``).
        softcap: ``final_logit_softcapping`` of the target, 0 for none.
        top_k: tokens a row, 1 to 8.
        log_sum_exp: whether to return it.
        fallback_id: the id where a row has no candidate.
        max_batch: rows of the largest batch; sizes the workspace (8 bytes a row, tile and k).
    """

    scale: float = 1.0
    softcap: float = 0.0
    top_k: int = 1
    log_sum_exp: bool = False
    fallback_id: int = 0
    max_batch: int = 256

    def __post_init__(self) -> None:
        """Raise ValueError for an option outside its range."""
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, not {self.scale}")
        if not self.softcap >= 0:
            raise ValueError(f"softcap must be positive, or 0 for none, not {self.softcap}")
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k must be 1 to {MAX_TOP_K}, not {self.top_k}")
        if self.max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, not {self.max_batch}")
        if not 0 <= self.fallback_id < 2**31:
            raise ValueError(f"fallback_id must be a token id, not {self.fallback_id}")


class DraftLogits(ABC):
    """Best tokens of a batch, each row over the list of its language.

    Calls use one workspace and must therefore be ordered: one stream, or one after another.
    """

    def __init__(
        self,
        head: Tensor,
        slots: DraftSlots,
        options: DraftOptions,
        own_ids: Tensor | None = None,
    ) -> None:
        """Keep references to the live ``head`` [V, D], to the tables and to own tokens.

        Args:
            head: this rank's share of the target's head.
            slots: for the same shard.
            options: see ``DraftOptions``.
            own_ids: int32 [request slots, languages, N], N one of ``OWN_TOKENS`` above 0: distinct
                tokens of the request that the list of the language lacks, then ``NO_TOKEN``. Read
                anew at each call. None: rows draft from their lists alone.

        Raises:
            ValueError: the head is not a float matrix with contiguous rows, or has no row that a
                slot names; or ``own_ids`` has another shape, dtype or device.
        """
        if head.dim() != 2 or head.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError(
                "the head must be a float32, float16 or bfloat16 matrix, "
                f"not {head.dtype} of shape {list(head.shape)}"
            )
        if head.stride(1) != 1:
            raise ValueError(f"the head's rows must be contiguous; its strides are {head.stride()}")
        if len(slots) and int(slots.head_rows.max()) >= head.shape[0]:
            raise ValueError(
                f"the slots name head row {int(slots.head_rows.max())}, but the head has only "
                f"{head.shape[0]} rows; build the slots with this rank's shard range"
            )
        if own_ids is not None:
            _check_own_ids(own_ids, slots, head.device)
        self.own_ids = own_ids
        self.head = head.detach()  # the same memory: weight updates in place are seen
        self.slots = slots
        self.options = options

    def _check_batch(self, batch: int) -> None:
        if batch > self.options.max_batch:
            raise ValueError(
                f"a batch of {batch} rows is more than max_batch {self.options.max_batch}"
            )

    @abstractmethod
    def __call__(
        self, hidden: Tensor, languages: Tensor, request_slots: Tensor | None = None
    ) -> DraftTokens:
        """Return the best tokens of every row, over this rank's share of its candidates.

        Args:
            hidden: [B, D] in any float dtype, rows contiguous; cast to the head's dtype.
            languages: int32 or int64 [B] on the same device, an index into ``slots.languages``;
                any other value means "no list", and no own tokens either.
            request_slots: int64 [B], whose own tokens each row has; needed where these are given,
                and not read otherwise.

        Raises:
            ValueError: more than ``options.max_batch`` rows.
        """

    @abstractmethod
    def merge(self, keys: Tensor, log_sum_exp: Tensor | None = None) -> DraftTokens:
        """Combine what the tensor-parallel ranks found, after an all-gather of ``keys``.

        Args:
            keys: int64 [ranks, B, k].
            log_sum_exp: float32 [ranks, B] if the option is set.
        """

    @abstractmethod
    def refresh(self) -> None:
        """Copy the head rows again after the head's weights were updated in place.

        Does nothing where rows are read from the live head.
        """

    @abstractmethod
    def warm_up(self) -> None:
        """Compile whatever a later call could need, so that no call pauses to do so."""


def _check_own_ids(own_ids: Tensor, slots: DraftSlots, device: torch.device) -> None:
    fits = (
        own_ids.dim() == 3
        and own_ids.shape[1] == len(slots.languages)
        and own_ids.shape[2] in OWN_TOKENS[1:]
        and own_ids.dtype == torch.int32
        and own_ids.device == device
        and own_ids.is_contiguous()
    )
    if not fits:
        raise ValueError(
            f"own_ids must be contiguous int32 [request slots, {len(slots.languages)}, one of "
            f"{OWN_TOKENS[1:]}] on {device}, not {own_ids.dtype} of shape {list(own_ids.shape)} "
            f"on {own_ids.device}"
        )
