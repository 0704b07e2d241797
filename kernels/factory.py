"""The implementation of draft logits for a device: the one place that knows them all."""

from __future__ import annotations

from torch import Tensor

from fastmtp_kernels.draft_logits import DraftLogits, DraftOptions
from fastmtp_kernels.slots import DraftSlots


def make_draft_logits(
    head: Tensor,
    slots: DraftSlots,
    options: DraftOptions | None = None,
    own_ids: Tensor | None = None,
    *,
    packed: bool = False,
) -> DraftLogits:
    """Return the implementation for the head's device.

    Args:
        head: [V, D] float matrix, this rank's share of the target's head.
        slots: from ``DraftSlots.build``, for the same shard.
        options: see ``DraftOptions``.
        own_ids: see ``DraftLogits``.
        packed: on a GPU, copy the union of all lists into slot order instead of gathering rows from
            the live head: contiguous reads for the memory of the copy. The CPU always packs, a
            float32 copy a list, the full vocabulary's included.
    """
    options = options or DraftOptions()
    if head.device.type == "cpu":
        from fastmtp_kernels.torch_draft import TorchDraftLogits

        return TorchDraftLogits(head, slots, options, own_ids)
    from fastmtp_kernels.triton_draft import TritonDraftLogits

    return TritonDraftLogits(head, slots, options, own_ids, packed=packed)
