"""Liger's loss is the chunked one: under Triton's interpreter here, and chosen only where it runs.

Alone: pytest tests/training/test_liger.py
"""

import os
import subprocess
import sys

import pytest
import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.training import liger
from fastmtp_sglang.training.config import LossSection
from fastmtp_sglang.training.liger import choose_loss, liger_chain_loss
from fastmtp_sglang.training.loss import chain_loss

COMPARE = """
import torch
from fastmtp_sglang.training.liger import liger_chain_loss
from fastmtp_sglang.training.loss import Labels, LossWeights, OutputLayer, chain_loss
states = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))
output = OutputLayer(torch.randn(40, 16, generator=torch.Generator().manual_seed(1)))
rows = torch.tensor([[0, 1, 2, 3, 8], [-1, 0, 1, -1, 7], [-1, -1, -1, -1, -1]])
labels = Labels(rows, torch.tensor([3, 39, 0, 12, 5]))
results = []
for loss in (liger_chain_loss, chain_loss):
    own = states.clone().requires_grad_()
    sums, correct = loss(own, labels, output, LossWeights(0.5))
    (sums * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    results.append((sums.detach(), correct, own.grad))
for ours, theirs in zip(*results):
    torch.testing.assert_close(ours, theirs)
"""


@pytest.mark.heavy
def test_equals_the_chunked_loss_under_the_interpreter():
    pytest.importorskip("liger_kernel")
    ran = subprocess.run(
        [sys.executable, "-c", COMPARE],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize(
    ("kernel", "kl", "installed", "device", "expected"),
    [
        ("auto", 0.0, True, "cuda", liger_chain_loss),
        ("auto", 0.5, True, "cuda", chain_loss),
        ("auto", 0.0, False, "cuda", chain_loss),
        ("auto", 0.0, True, "cpu", chain_loss),
        ("chunked", 0.0, True, "cuda", chain_loss),
        ("liger", 0.0, True, "cuda", liger_chain_loss),
    ],
)
def test_choice(monkeypatch, kernel, kl, installed, device, expected):
    monkeypatch.setattr(liger, "find_spec", lambda name: object() if installed else None)
    section = LossSection(kernel=kernel, kl=kl)
    assert choose_loss(section, torch.device(device))[0] is expected


@pytest.mark.parametrize(("installed", "message"), [(False, "pip install"), (True, "runs on GPUs")])
def test_liger_where_it_cannot_run_is_an_error(monkeypatch, installed, message):
    monkeypatch.setattr(liger, "find_spec", lambda name: object() if installed else None)
    with pytest.raises(FastMTPError, match=message):
        choose_loss(LossSection(kernel="liger"), torch.device("cpu"))
