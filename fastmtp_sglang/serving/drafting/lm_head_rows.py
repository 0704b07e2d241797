"""The rows of an lm_head, as the draft kernel reads them.

Those of a plain lm_head lie in its weight. A quantized one computes them, once: its products with
the unit vectors are its columns, whatever its format is (FP8 or INT8 with scales of rows or blocks,
groups of 4 bits), and a factor that a fixed scale of activations puts before all of them decides
nothing. They are for drafts alone; verification goes on with the layer.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.runtime_context import get_spec
from torch import Tensor

logger = logging.getLogger(__name__)

_PLAIN = (torch.float32, torch.bfloat16, torch.float16)
# Unit vectors at once: bounds the memory of what they are multiplied to.
_UNITS = 256


class LMHeadRows:
    """Rows of this rank's share of an lm_head.

    Attributes:
        tensor: [rows, D]; the weight itself, or a copy in the dtype of the hidden states.
        shard: SGLang's indices of the share.
    """

    def __init__(self, lm_head: Any, tensor: Tensor, dtype: torch.dtype | None) -> None:
        self.tensor = tensor
        self.shard = lm_head.shard_indices
        self._lm_head, self._dtype = lm_head, dtype

    @classmethod
    def of(cls, lm_head: Any, dtype: torch.dtype) -> LMHeadRows | None:
        """Return an lm_head's rows, None where they cannot be read (or have a bias beside them).

        Args:
            lm_head: SGLang's `ParallelLMHead`, or what a quantization made of it.
            dtype: of the hidden states.
        """
        if getattr(lm_head, "bias", None) is not None:
            return None
        weight = getattr(lm_head, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2 and weight.dtype in _PLAIN:
            return cls(lm_head, weight, None)
        if not callable(getattr(getattr(lm_head, "quant_method", None), "apply", None)):
            return None
        rows = _computed(lm_head, dtype)
        logger.info(
            "The lm_head is quantized: drafts are scored with a copy of its rows in %s (%d MiB).",
            dtype,
            rows.nbytes >> 20,
        )
        return cls(lm_head, rows, dtype)

    @classmethod
    def for_drafts(
        cls, lm_head: Any, processor: LogitsProcessor, dtype: torch.dtype
    ) -> LMHeadRows | None:
        """`of` where drafts can be scored by rows; None, and why in the log, where they cannot.

        Rejection sampling needs the distribution over all tokens. Data-parallel attention scores
        the rows of all ranks together, of which each knows the lists of its own requests alone,
        unless every rank has all of the lm_head (--enable-dp-lm-head).
        """
        if get_spec().speculative_use_rejection_sampling:
            return None
        if processor.do_tensor_parallel_all_gather_dp_attn:
            why = "--enable-dp-attention without --enable-dp-lm-head scores the rows of all ranks"
        else:
            rows = cls.of(lm_head, dtype)
            if rows is not None:
                return rows
            why = "the rows of this target's lm_head cannot be read by themselves"
        logger.info(
            "Drafts are scored over all tokens and then kept to their lists, which saves no "
            "time: %s.",
            why,
        )
        return None

    def refresh(self) -> None:
        """Read them again, after an update of the weights."""
        if self._dtype is not None:
            self.tensor.copy_(_computed(self._lm_head, self._dtype))


@torch.no_grad()
def _computed(lm_head: Any, dtype: torch.dtype) -> Tensor:
    width = lm_head.embedding_dim
    device = next(lm_head.parameters()).device
    found: list[Tensor] = []
    for first in range(0, width, _UNITS):
        count = min(_UNITS, width - first)
        units = torch.zeros(count, width, dtype=dtype, device=device)
        units.diagonal(first).fill_(1.0)
        found.append(lm_head.quant_method.apply(lm_head, units).T)
    return torch.cat(found, dim=1).contiguous()
