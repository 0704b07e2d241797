"""Which implementation a head's device gets.

Alone: pytest tests/kernels/test_factory.py
"""

from types import SimpleNamespace

import pytest
import torch

from fastmtp_kernels import triton_draft
from fastmtp_kernels.draft_logits import DraftOptions
from fastmtp_kernels.factory import make_draft_logits
from fastmtp_kernels.slots import DraftSlots
from fastmtp_kernels.torch_draft import TorchDraftLogits

SLOTS = DraftSlots.build({"en": [1]}, 4)


@pytest.mark.parametrize("packed", [False, True])
def test_a_cpu(packed):
    made = make_draft_logits(torch.eye(4), SLOTS, packed=packed)
    assert (type(made), made.options) == (TorchDraftLogits, DraftOptions())


@pytest.mark.parametrize("packed", [False, True])
def test_a_gpu(monkeypatch, packed):
    given = []
    monkeypatch.setattr(
        triton_draft, "TritonDraftLogits", lambda *args, **kwargs: given.append((args, kwargs))
    )
    head, options = SimpleNamespace(device=torch.device("cuda")), DraftOptions(top_k=2)
    own_ids = torch.full((2, 1, 64), -1, dtype=torch.int32)
    make_draft_logits(head, SLOTS, options, own_ids, packed=packed)
    assert given == [((head, SLOTS, options, own_ids), {"packed": packed})]
