import pytest
import torch
from kernel_cases import assert_matches_reference, draft, draft_sharded, random_case

from fastmtp_kernels.factory import make_draft_logits
from fastmtp_kernels.slots import DraftSlots
from fastmtp_kernels.torch_draft import TorchDraftLogits

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("block", range(8))
def test_equals_the_float64_reference(block: int):
    for seed in range(block * 100, block * 100 + 100):
        case = random_case(seed)
        assert_matches_reference(draft(case, TorchDraftLogits), case)


@pytest.mark.parametrize("block", range(2))
def test_uneven_shards_find_what_the_whole_head_finds(block: int):
    for seed in range(1000 + block * 100, 1100 + block * 100):
        case = random_case(seed)
        assert_matches_reference(draft_sharded(case, TorchDraftLogits, seed), case)


def test_refresh_copies_the_updated_head():
    head = torch.eye(4)
    lists = {"odd": [1, 3], "all": range(4)}
    draft_logits = make_draft_logits(head, DraftSlots.build(lists, 4))
    assert isinstance(draft_logits, TorchDraftLogits)
    hidden, languages = torch.tensor([[0.0, 1.0, 0.5, 0.0]] * 2), torch.tensor([0, 1])
    assert draft_logits(hidden, languages).ids.flatten().tolist() == [1, 1]
    head.copy_(head.flip(0))
    assert draft_logits(hidden, languages).ids.flatten().tolist() == [1, 1]
    draft_logits.refresh()
    assert draft_logits(hidden, languages).ids.flatten().tolist() == [1, 2]
    assert draft_logits(hidden, languages).scores.flatten().tolist() == [0.5, 1.0]


def test_a_platform_may_multiply_by_the_head_rows_itself(monkeypatch: pytest.MonkeyPatch):
    """Each language's rows are given once, in the order of their ids, and asked for its rows."""
    given, asked = [], []

    def packer(rows: torch.Tensor):
        given.append(rows)

        def product(hidden: torch.Tensor) -> torch.Tensor:
            asked.append(hidden)
            return hidden @ rows.float().T

        return product

    monkeypatch.setattr(TorchDraftLogits, "packer", staticmethod(packer))
    head = torch.eye(4, dtype=torch.bfloat16)
    draft_logits = make_draft_logits(head, DraftSlots.build({"odd": [1, 3], "all": range(4)}, 4))
    assert [rows.tolist() for rows in given] == [head[[1, 3]].tolist(), head.tolist()]
    hidden = torch.tensor([[0.0, 1.0, 3.0, 2.0]] * 3, dtype=torch.bfloat16)
    assert draft_logits(hidden, torch.tensor([0, 1, 0])).ids.flatten().tolist() == [3, 2, 3]
    assert [len(rows) for rows in asked] == [2, 1]
    assert {rows.dtype for rows in asked} == {torch.float32}


def test_an_empty_batch_gives_empty_tensors():
    draft_logits = make_draft_logits(torch.eye(4), DraftSlots.build({"en": [1]}, 4))
    tokens = draft_logits(torch.empty(0, 4), torch.empty(0, dtype=torch.int64))
    assert tokens.ids.shape == (0, 1)
