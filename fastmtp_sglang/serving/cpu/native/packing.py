"""Weights as the native product reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastmtp_sglang.serving.cpu.native.emitter import PANEL


@dataclass(frozen=True)
class Packed:
    """A weight [outputs, inputs] in panels of PANEL outputs, input by input, padded at the end."""

    panels: Tensor
    outputs: int

    @staticmethod
    def of(weight: Tensor) -> Packed:
        """Pack a float32 or bfloat16 weight."""
        outputs, inputs = weight.shape
        count = -(-outputs // PANEL)
        padded = torch.zeros(count * PANEL, inputs, dtype=weight.dtype)
        padded[:outputs] = weight
        panels = padded.view(count, PANEL, inputs).transpose(1, 2).contiguous()
        return Packed(panels, outputs)

    def rows(self) -> Tensor:
        """The weight again, exactly."""
        return self.panels.transpose(1, 2).reshape(-1, self.panels.shape[1])[: self.outputs]
