"""The draft head between SGLang's processor and the kernel, on CPU tensors and without a server."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.logits_processor import LogitsProcessor

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.drafting.draft_head import DraftHead, DraftLogitsProcessor, NextTokenIds
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary

VOCAB, WIDTH, SLOTS = 96, 16, 8
EVEN, ODD, FULL = 0, 1, 2


def vocabulary() -> DraftVocabulary:
    return DraftVocabulary(
        vocab_size=VOCAB,
        tokenizer_fingerprint="sha256:none",
        ids={"even": torch.arange(0, VOCAB, 2), "odd": torch.arange(1, VOCAB, 2)},
        token_scripts=torch.zeros(VOCAB, dtype=torch.int8),
        routes={},
    )


def processor(**fields) -> LogitsProcessor:
    made = LogitsProcessor.__new__(LogitsProcessor)
    torch.nn.Module.__init__(made)
    made.logit_scale = fields.get("logit_scale")
    made.final_logit_softcapping = fields.get("softcap")
    made.do_tensor_parallel_all_gather = False
    return made


def lm_head(weight: torch.Tensor, **fields):
    shard = SimpleNamespace(org_vocab_start_index=0, org_vocab_end_index=VOCAB)
    return SimpleNamespace(weight=weight, shard_indices=shard, **fields)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def head(weight) -> DraftHead:
    made = DraftHead(vocabulary(), lm_head(weight), processor(), SLOTS)
    made.router.lists[[1, 2, 3]] = torch.tensor([EVEN, ODD, FULL])
    return made


def batch(slots, **fields):
    return SimpleNamespace(req_pool_indices=torch.tensor(slots), **fields)


def best(weight, hidden, ids) -> int:
    return int(ids[(weight[ids].double() @ hidden.double()).argmax()])


def test_each_row_drafts_from_its_list_and_its_slot_keeps_the_token(head, weight):
    hidden = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
    head.batch = batch([3, 1, 2])
    logits = head.score(hidden)
    # One column for SGLang's argmax, whatever the vocabulary.
    assert logits.shape == (3, 1)
    assert logits.dtype == torch.float32
    every = torch.arange(VOCAB)
    expected = [
        best(weight, row, ids)
        for row, ids in zip(hidden, (every, every[::2], every[1::2]), strict=True)
    ]
    assert head.next_ids[[3, 1, 2]].tolist() == expected
    head.batch = batch([2, 3])
    assert NextTokenIds(head)[torch.zeros(2, 1, dtype=torch.int64)].tolist() == [
        [expected[2]],
        [expected[0]],
    ]


def test_a_draft_extension_scores_the_last_accepted_row_of_each_request(head, weight):
    hidden = torch.randn(2 * 4, WIDTH, generator=torch.Generator().manual_seed(2))
    accept = torch.tensor([3, 1])
    head.batch = batch([3, 3], spec_info=SimpleNamespace(num_accept_tokens=accept))
    head.router.lists[4] = FULL
    head.batch.req_pool_indices = torch.tensor([3, 4])
    assert head.score(hidden).shape == (8, 1)
    every = torch.arange(VOCAB)
    assert head.next_ids[[3, 4]].tolist() == [
        best(weight, hidden[2], every),
        best(weight, hidden[4], every),
    ]


def test_padded_rows_and_empty_batches(head):
    head.batch = batch([1, 0, 0])
    head.score(torch.randn(3, WIDTH))
    assert head.next_ids[0] == 0  # slot 0 has no list: the fallback id, the lowest of the first
    head.batch = batch([], spec_info=None)
    head.batch.req_pool_indices = torch.empty(0, dtype=torch.int64)
    assert head.score(torch.empty(0, WIDTH)).shape == (0, 1)


def test_the_processor_changes_class_and_nothing_else(weight):
    stock = processor(logit_scale=0.5, softcap=30.0)
    before = dict(vars(stock))
    head = DraftHead(vocabulary(), lm_head(weight), stock, SLOTS)
    assert type(stock) is DraftLogitsProcessor
    assert stock.draft_head is head
    assert {name: vars(stock)[name] for name in before} == before
    options = head._logits.options
    assert (options.scale, options.softcap) == (0.5, 30.0)


def test_a_list_of_a_shard(weight):
    """The second of two uneven tensor-parallel shards scores its own rows under global ids."""
    start = 60
    made = lm_head(weight[start:])
    made.shard_indices = SimpleNamespace(org_vocab_start_index=start, org_vocab_end_index=VOCAB)
    head = DraftHead(vocabulary(), made, processor(), SLOTS)
    head.router.lists[1] = ODD
    hidden = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(3))
    head.batch = batch([1])
    head.score(hidden)
    assert int(head.next_ids[1]) == best(weight, hidden[0], torch.arange(start + 1, VOCAB, 2))


@pytest.mark.parametrize(
    "fields",
    [
        {"weight": torch.zeros(VOCAB, WIDTH, dtype=torch.int8)},
        {"weight": None},
        {"weight": torch.zeros(VOCAB, WIDTH), "bias": torch.zeros(VOCAB)},
    ],
)
def test_a_head_whose_rows_cannot_be_read_is_refused(fields):
    with pytest.raises(FastMTPError, match="--speculative-token-map needs an lm_head whose rows"):
        DraftHead(vocabulary(), lm_head(**fields), processor(), SLOTS)


def test_rows_are_read_again_after_a_weight_update(head, weight):
    """The CPU's lists hold copies of an lm_head that SGLang may write new values into."""
    hidden = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(3))
    head.batch = batch([3])
    head.score(hidden)
    old = int(head.next_ids[3])
    weight.neg_()
    head.score(hidden)
    assert int(head.next_ids[3]) == old
    head.is_stale = True
    head.score(hidden)
    assert int(head.next_ids[3]) == best(weight, hidden[0], torch.arange(VOCAB)) != old
    assert not head.is_stale


def test_a_weight_update_makes_the_lists_stale():
    from fastmtp_sglang.serving.worker import FastMTPDraftWorker

    worker = FastMTPDraftWorker.__new__(FastMTPDraftWorker)
    worker.target_worker = SimpleNamespace(weight_update_runners=lambda: [("target", None)])
    draft_head = SimpleNamespace(is_stale=False)
    worker._watch_weight_updates(draft_head)
    assert not draft_head.is_stale
    assert worker.target_worker.weight_update_runners() == [("target", None)]
    assert draft_head.is_stale
