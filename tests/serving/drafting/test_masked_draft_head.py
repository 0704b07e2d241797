"""Draft logits of all tokens, of which each request's list keeps its own.

Alone: pytest tests/serving/drafting/test_masked_draft_head.py
"""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.logits_processor import LogitsProcessor

from fastmtp_sglang.serving.drafting.masked_draft_head import (
    MaskedDraftHead,
    MaskedLogitsProcessor,
)
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary

VOCAB = 6
EVEN, ODD, FULL = 0, 1, 2
LISTS = {EVEN: [0, 2, 4], ODD: [1, 3, 5], FULL: list(range(VOCAB))}


@pytest.fixture
def processor() -> LogitsProcessor:
    made = LogitsProcessor.__new__(LogitsProcessor)
    torch.nn.Module.__init__(made)
    return made


@pytest.fixture
def head(processor) -> MaskedDraftHead:
    vocabulary = DraftVocabulary(
        vocab_size=VOCAB,
        tokenizer_fingerprint="sha256:none",
        ids={"even": torch.tensor(LISTS[EVEN]), "odd": torch.tensor(LISTS[ODD])},
        token_scripts=torch.zeros(VOCAB, dtype=torch.int8),
        routes={},
    )
    made = MaskedDraftHead(vocabulary, processor, num_slots=5, device="cpu")
    made.router.lists[[1, 2, 3]] = torch.tensor([EVEN, ODD, FULL])
    return made


def batch(*slots: int) -> SimpleNamespace:
    return SimpleNamespace(req_pool_indices=torch.tensor(slots, dtype=torch.int64))


@pytest.mark.parametrize("rows_each", [1, 4], ids=["draft step", "draft extension"])
def test_each_row_keeps_the_list_of_its_request(head, rows_each):
    head.batch = batch(3, 1, 2)
    logits = torch.randn(3 * rows_each, VOCAB, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    masked = head.mask(logits)
    assert masked.shape == before.shape
    for row, kept in enumerate(masked):
        listed = LISTS[(FULL, EVEN, ODD)[row // rows_each]]
        assert kept[listed].tolist() == before[row][listed].tolist()
        assert kept.isneginf().sum() == VOCAB - len(listed)
    # A copy of all logits would cost a pass over them.
    assert masked.data_ptr() == logits.data_ptr()


def test_rejection_sampling_has_all_of_q(head):
    head.batch = batch(1)
    q = head.mask(torch.zeros(1, VOCAB)).softmax(1)
    torch.testing.assert_close(q, torch.tensor([[1.0, 0, 1, 0, 1, 0]]) / 3)


def test_a_slot_that_no_request_has_used_still_has_tokens(head):
    """Padding rows of a CUDA graph: a row of minus infinity alone would be NaN in softmax."""
    head.batch = batch(0, 4)
    assert head.mask(torch.zeros(2, VOCAB)).isfinite().any(1).all()


def test_an_empty_batch(head):
    head.batch = batch()
    assert head.mask(torch.zeros(0, VOCAB)).shape == (0, VOCAB)


def test_sglangs_logits_are_masked(head, processor, monkeypatch):
    asked = []

    def stock(self, hidden, lm_head, *, extra):
        asked.append((self, lm_head, extra))
        return torch.zeros(len(hidden), VOCAB)

    monkeypatch.setattr(LogitsProcessor, "_get_logits", stock)
    assert type(processor) is MaskedLogitsProcessor
    head.batch = batch(2)
    logits = processor._get_logits(torch.ones(1, 3), "lm_head", extra=1)
    assert logits.isneginf().tolist() == [[True, False] * 3]
    assert asked == [(processor, "lm_head", 1)]
