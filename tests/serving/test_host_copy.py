"""Copies of what a device holds: begun at once, waited for by nobody.

Alone: pytest tests/serving/test_host_copy.py
"""

from types import SimpleNamespace

import pytest
import torch

from fastmtp_sglang.serving import host_copy
from fastmtp_sglang.serving.host_copy import HostCopy


def test_what_is_on_the_host_is_taken_as_it_is():
    tensor = torch.arange(3)
    copy = HostCopy.start(tensor)
    assert copy.tensor is copy.wait() is tensor
    assert copy.arrived()


@pytest.fixture
def device(monkeypatch):
    """A stand-in for a GPU: a tensor of it, and what was asked of it."""
    asked = []
    made = SimpleNamespace(asked=asked, ready=False)

    class Event:
        def record(self):
            asked.append("record")

        def query(self):
            return made.ready

        def synchronize(self):
            asked.append("synchronize")

    def empty(shape, *, dtype, pin_memory):
        asked.append(f"{list(shape)} {dtype}, pinned: {pin_memory}")
        return SimpleNamespace(
            copy_=lambda tensor, *, non_blocking: asked.append(f"copy, async: {non_blocking}")
        )

    monkeypatch.setattr(host_copy.torch, "empty", empty)
    monkeypatch.setattr(
        host_copy.torch, "get_device_module", lambda device: SimpleNamespace(Event=Event)
    )
    made.tensor = SimpleNamespace(
        device=torch.device("cuda"), shape=torch.Size([2, 5]), dtype=torch.int32
    )
    return made


def test_a_copy_from_a_device_is_complete_when_its_event_is(device):
    copy = HostCopy.start(device.tensor)
    assert device.asked == ["[2, 5] torch.int32, pinned: True", "copy, async: True", "record"]
    assert not copy.arrived()
    device.ready = True
    assert copy.arrived()
    assert device.asked[-1] == "record"  # to ask is not to wait
    assert copy.wait() is copy.tensor
    assert device.asked[-1] == "synchronize"
