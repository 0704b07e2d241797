"""The Triton kernels against the float64 reference, on the CPU, under Triton's interpreter.

Triton decides when it is imported whether to interpret, so that these tests need a process of their
own: ``test_triton_draft_interpreted.py`` starts it, or by hand
``TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted.py``.
The interpreter runs programs one after another: it proves the arithmetic, and nothing about races.
"""

from __future__ import annotations

import functools

import pytest
import torch
import triton
from kernel_cases import assert_matches_reference, draft, draft_sharded, random_case

from fastmtp_kernels import tile_configs
from fastmtp_kernels.draft_logits import DraftOptions
from fastmtp_kernels.slots import DraftSlots
from fastmtp_kernels.torch_draft import TorchDraftLogits
from fastmtp_kernels.triton_draft import TritonDraftLogits

pytestmark = pytest.mark.filterwarnings(
    # numpy warns where the kernels mean it: log(0), inf - inf, overflow to inf
    "ignore::RuntimeWarning"
)

BLOCK = 25


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch):
    """Choose the tiles of the next ``TritonDraftLogits``; the tests' lists are all short."""

    def choose(large: bool) -> None:
        monkeypatch.setattr(tile_configs, "ENOUGH_PROGRAMS", 1 if large else 10**9)

    return choose


def test_the_interpreter_is_on():
    assert triton.knobs.runtime.interpret


@pytest.mark.parametrize("packed", [False, True], ids=["gather", "packed"])
@pytest.mark.parametrize("large", [False, True], ids=["small tiles", "large tiles"])
def test_equals_the_float64_reference(large: bool, packed: bool, tiles):
    tiles(large)
    make = functools.partial(TritonDraftLogits, packed=packed)
    first = 10_000 + 1000 * packed + 500 * large
    for seed in range(first, first + BLOCK):
        case = random_case(seed)
        assert_matches_reference(draft(case, make), case)


@pytest.mark.parametrize("large", [False, True], ids=["small tiles", "large tiles"])
def test_uneven_shards_find_what_the_whole_head_finds(large: bool, tiles):
    tiles(large)
    first = 20_000 + 500 * large
    for seed in range(first, first + 6):
        case = random_case(seed)
        assert_matches_reference(draft_sharded(case, TritonDraftLogits, seed), case)


@pytest.mark.parametrize("batch", [64, 128, 129, 256])
def test_large_batches(batch: int):
    torch.manual_seed(batch)
    head, hidden = torch.randint(-2, 3, (90, 40)).half(), torch.randint(-2, 3, (batch, 40)).half()
    slots = DraftSlots.build({"en": range(0, 90, 2), "zh": range(30, 60), "all": range(90)}, 90)
    languages = torch.randint(-1, 3, (batch,))
    found = TritonDraftLogits(head, slots, DraftOptions())(hidden, languages)
    expected = TorchDraftLogits(head, slots, DraftOptions())(hidden, languages)
    assert torch.equal(found.keys, expected.keys)


def test_a_row_does_not_depend_on_its_neighbours():
    """And so not on the tiles that other languages keep busy, nor on an older workspace."""
    torch.manual_seed(0)
    head, hidden = torch.randn(300, 70), torch.randn(6, 70)
    slots = DraftSlots.build({"en": range(0, 300, 3), "zh": range(50), "all": range(300)}, 300)
    draft_logits = TritonDraftLogits(head, slots, DraftOptions(top_k=2, log_sum_exp=True))
    languages = torch.tensor([0, 1, 2, 1, -1, 0])
    together = draft_logits(hidden, languages)
    for row in range(6):
        alone = draft_logits(hidden[row : row + 1], languages[row : row + 1])
        assert torch.equal(alone.keys[0], together.keys[row])
        assert torch.equal(alone.log_sum_exp[0], together.log_sum_exp[row])


def test_a_tile_is_skipped_when_no_row_speaks_its_languages(tiles):
    tiles(large=True)
    slots = DraftSlots.build({"en": range(128), "zh": range(128, 256)}, 256)
    draft_logits = TritonDraftLogits(torch.randn(256, 20), slots, DraftOptions(max_batch=1))
    draft_logits._tile_keys.fill_(7)
    draft_logits.score_tiles(torch.randn(1, 20), torch.tensor([1]))
    zh_tiles = (slots.tile_bits(64) & 0b10) != 0
    assert zh_tiles.sum() == 2
    assert torch.equal(draft_logits._tile_keys[:4] != 7, zh_tiles)


def test_negative_zero_ties_with_zero():
    head = torch.tensor([[-1e-45], [0.0]])  # the product with the scale underflows to -0
    slots = DraftSlots.build({"all": range(2)}, 2)
    draft_logits = TritonDraftLogits(head, slots, DraftOptions(scale=0.25))
    tokens = draft_logits(torch.ones(1, 1), torch.zeros(1).long())
    assert (tokens.ids.item(), str(tokens.scores.item())) == (0, "0.0")


def test_strided_hidden_rows_are_read_in_place():
    head, wide = torch.eye(40), torch.randn(5, 3, 40)
    slots = DraftSlots.build({"all": range(40)}, 40)
    found = TritonDraftLogits(head, slots, DraftOptions())(wide[:, 1], torch.zeros(5).long())
    assert torch.equal(found.ids[:, 0], wide[:, 1].argmax(1))


def test_refresh_copies_the_updated_head():
    head = torch.eye(4)
    slots = DraftSlots.build({"odd": [1, 3]}, 4)
    hidden, languages = torch.tensor([[0.0, 1.0, 0.5, 0.0]]), torch.zeros(1).long()
    packed = TritonDraftLogits(head, slots, DraftOptions(), packed=True)
    live = TritonDraftLogits(head, slots, DraftOptions())
    head.copy_(head.flip(0))
    assert packed(hidden, languages).scores.item() == 1.0
    packed.refresh()
    assert packed(hidden, languages).scores.item() == live(hidden, languages).scores.item() == 0.5


def test_an_empty_batch_launches_nothing():
    slots = DraftSlots.build({"en": [1]}, 4)
    draft_logits = TritonDraftLogits(torch.eye(4), slots, DraftOptions())
    draft_logits.warm_up()
    assert draft_logits(torch.empty(0, 4), torch.empty(0).long()).ids.shape == (0, 1)
