"""What is checked once, when a draft head is made, so that no call checks anything.

Alone: pytest tests/kernels/test_draft_logits.py
"""

import pytest
import torch

from fastmtp_kernels.draft_logits import DraftOptions, DraftTokens
from fastmtp_kernels.factory import make_draft_logits
from fastmtp_kernels.keys import encode_keys
from fastmtp_kernels.slots import DraftSlots


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("scale", 0.0),
        ("scale", float("nan")),
        ("softcap", -1.0),
        ("top_k", 0),
        ("top_k", 9),
        ("max_batch", 0),
        ("fallback_id", -1),
    ],
)
def test_options_are_checked_when_made(option: str, value: float):
    with pytest.raises(ValueError, match=option):
        DraftOptions(**{option: value})


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (torch.zeros(4), "matrix"),
        (torch.zeros(4, 4, dtype=torch.int8), "float"),
        (torch.zeros(4, 4).t()[:, ::2], "contiguous"),
        (torch.zeros(2, 4), "shard range"),
    ],
)
def test_heads_are_checked_when_given(head: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        make_draft_logits(head, DraftSlots.build({"en": [1, 3]}, 4))


def test_a_batch_above_the_workspace_is_refused():
    options = DraftOptions(max_batch=2)
    draft_logits = make_draft_logits(torch.eye(4), DraftSlots.build({"en": [1]}, 4), options)
    with pytest.raises(ValueError, match="max_batch 2"):
        draft_logits(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))


def test_the_head_stays_the_callers_memory():
    """Weight updates in place are seen, and nothing is differentiated."""
    weight = torch.nn.Parameter(torch.eye(4))
    made = make_draft_logits(weight, DraftSlots.build({"en": [1]}, 4))
    assert made.head.data_ptr() == weight.data_ptr()
    assert not made.head.requires_grad


def test_a_head_without_listed_rows_is_fine():
    """A tensor-parallel rank may hold none of any list."""
    made = make_draft_logits(torch.zeros(0, 4), DraftSlots.build({"en": [3]}, 4, shard=(0, 0)))
    tokens = made(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))
    assert tokens.scores.flatten().tolist() == [-torch.inf] * 2


def test_keys_are_packed_once():
    ids, scores = torch.tensor([[3, 1]]), torch.tensor([[2.0, -1.0]])
    assert torch.equal(DraftTokens(ids, scores, None).keys, encode_keys(scores, ids))
    packed = torch.tensor([[7, 5]])
    assert DraftTokens(ids, scores, None, packed).keys is packed
