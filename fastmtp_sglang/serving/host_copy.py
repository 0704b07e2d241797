"""Copies of what is on the device, read later: the scheduler never waits for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class HostCopy(NamedTuple):
    """A tensor on its way to the host.

    Attributes:
        tensor: on the host, complete when `arrived`.
        event: of the device's stream; None where there was nothing to copy.
    """

    tensor: Tensor
    event: Any

    @classmethod
    def start(cls, tensor: Tensor) -> HostCopy:
        """Begin to copy; what is on the host already is taken as it is."""
        if tensor.device.type == "cpu":
            return cls(tensor, None)
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        event = torch.get_device_module(tensor.device).Event()
        event.record()
        return cls(host, event)

    def arrived(self) -> bool:
        """Whether it is complete."""
        return self.event is None or self.event.query()

    def wait(self) -> Tensor:
        """The complete tensor."""
        if self.event is not None:
            self.event.synchronize()
        return self.tensor
