"""A head's passes without the model runner: which ones, and what the model is given.

Alone: pytest tests/serving/cpu/test_draft_pass.py
"""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.forward_context import get_attn_backend as backend

from fastmtp_sglang.serving.cpu import draft_pass
from fastmtp_sglang.serving.drafting.head_model import FastMTPHead


class Head(FastMTPHead):
    """Says what it was called with."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, input_ids, positions, forward_batch):
        return backend(), input_ids, positions, forward_batch.out_cache_loc


def runner(model: torch.nn.Module) -> SimpleNamespace:
    made = SimpleNamespace(model=model, attn_backend="its own", forward=lambda *_, **__: "stock")
    draft_pass.install(made)
    return made


def batch(mode: str, *, planned: bool = True) -> SimpleNamespace:
    """Two requests; the slots are those of the second of three steps."""
    return SimpleNamespace(
        forward_mode=ForwardMode[mode],
        input_ids=torch.tensor([5, 6]),
        positions=torch.tensor([3, 9]),
        out_cache_loc=torch.arange(6).view(2, 3)[:, 1],
        needs_forward_metadata_init=lambda: not planned,
    )


@pytest.fixture(autouse=True)
def one_rank(monkeypatch):
    monkeypatch.setattr(draft_pass, "get_parallel", lambda: SimpleNamespace(tp_size=1))


@pytest.mark.parametrize("mode", ["DECODE", "DRAFT_EXTEND_V2"])
def test_drafts_and_their_extension_go_straight_to_the_head(mode):
    output = runner(Head()).forward(batch(mode))
    attention, ids, positions, slots = output.logits_output
    assert attention == "its own"
    assert (ids.tolist(), positions.tolist(), slots.tolist()) == ([5, 6], [3, 9], [1, 4])
    # The operators read slots side by side.
    assert slots.is_contiguous()
    assert not output.can_run_graph


def test_a_draft_step_keeps_its_own_attention():
    with forward_context(ForwardContext(attn_backend="of the second step")):
        assert runner(Head()).forward(batch("DECODE")).logits_output[0] == "of the second step"


def test_everything_else_goes_through_the_runner(monkeypatch):
    assert runner(Head()).forward(batch("EXTEND")) == "stock"
    assert runner(Head()).forward(batch("DECODE", planned=False)) == "stock"
    assert runner(Head()).forward(batch("DECODE"), reinit_attn_backend=True) == "stock"
    assert runner(torch.nn.Identity()).forward(batch("DECODE")) == "stock"
    monkeypatch.setattr(draft_pass, "get_parallel", lambda: SimpleNamespace(tp_size=2))
    assert runner(Head()).forward(batch("DECODE")) == "stock"
