"""What one step of the worker leaves for the next, whose shape is not known yet.

Alone: pytest tests/serving/test_worker.py
"""

from types import SimpleNamespace

import pytest
import torch

from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.serving.drafting.draft_head import DraftHead, NextTokenIds
from fastmtp_sglang.serving.worker import EagleDraftWorker, FastMTPDraftWorker


def draft_worker(largest, top_k, head=None):
    worker = object.__new__(FastMTPDraftWorker)
    worker.largest, worker.topk, worker.draft_head = TreeShape.parse(largest), top_k, head
    worker._deferred_keys = worker.record = worker.lean_step = None
    worker.speculative_num_steps = worker.largest.num_steps
    return worker


@pytest.mark.parametrize("with_lists", [False, True])
def test_the_first_drafts_after_plain_decoding_are_siblings_that_differ(with_lists):
    """With equal ones a tree would sample their token too often."""
    slots = torch.tensor([5, 2])
    head = None
    if with_lists:
        head = object.__new__(DraftHead)
        # What slots that never drafted hold.
        head.next_ids = torch.zeros(6, 4, 4, dtype=torch.int64)
        head.slots = slots
    result = SimpleNamespace(
        next_draft_input=SimpleNamespace(),
        logits_output=SimpleNamespace(hidden_states=torch.ones(2, 3)),
    )
    draft_worker("2x4x8", 1, head)._draft_nothing(slots, result)
    first = result.next_draft_input
    ids = first.topk_index if head is None else NextTokenIds(head)[first.topk_index]
    assert ids.tolist() == [[0, 1, 2, 3]] * 2
    assert first.topk_p.tolist() == [[1.0] * 4] * 2
    assert first.hidden_states.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("top_k", [1, 4])
def test_a_draft_takes_as_many_first_tokens_as_its_shape_has_branches(monkeypatch, top_k):
    monkeypatch.setattr(EagleDraftWorker, "draft", lambda worker, batch: batch.spec_info)
    given = SimpleNamespace(topk_p=torch.rand(3, 4), topk_index=torch.arange(12).view(3, 4))
    best = given.topk_index[:, :top_k]
    taken = draft_worker("2x4x8", top_k).draft(SimpleNamespace(spec_info=given))
    assert torch.equal(taken.topk_index, best)
    assert taken.topk_p.shape == (3, top_k)


def test_every_step_leaves_the_first_tokens_of_the_largest_shape():
    worker = draft_worker("2x4x8", 1)
    with worker._for_any_shape():
        assert worker.topk == 4
    assert worker.topk == 1
