"""Weights as the native product reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmtp_sglang.serving.cpu.native import memory
from fastmtp_sglang.serving.cpu.native.emitter import PANEL


@dataclass(frozen=True)
class Packed:
    """A weight [outputs, inputs] in panels of PANEL outputs, padded at the end with zeros.

    A panel lies input by input, float32 [inputs, PANEL]; of bfloat16 two inputs lie together,
    [inputs / 2, PANEL, 2].
    """

    panels: Tensor
    outputs: int
    inputs: int

    @staticmethod
    def of(weight: Tensor) -> Packed:
        """Pack a float32 or bfloat16 weight."""
        outputs, inputs = weight.shape
        together = _together(weight.dtype)
        count, steps = -(-outputs // PANEL), -(-inputs // together)
        padded = torch.zeros(count * PANEL, steps * together, dtype=weight.dtype)
        padded[:outputs, :inputs] = weight
        turned = padded.view(count, PANEL, steps, together).transpose(1, 2)
        panels = memory.empty(tuple(turned.shape), weight.dtype).copy_(turned)
        return Packed(panels, outputs, inputs)

    def rows(self) -> Tensor:
        """The weight again, exactly."""
        count, steps, _, together = self.panels.shape
        padded = self.panels.transpose(1, 2).reshape(count * PANEL, steps * together)
        return padded[: self.outputs, : self.inputs]


def _together(dtype: torch.dtype) -> int:
    return 2 if dtype == torch.bfloat16 else 1
