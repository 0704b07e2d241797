"""The draft head between SGLang's processor and the kernel, on CPU tensors and without a server."""

from types import SimpleNamespace

import pytest
import torch
from logits_processors import processor

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.drafting import draft_head
from fastmtp_sglang.serving.drafting.draft_head import (
    DraftHead,
    DraftLogitsProcessor,
    NextTokenIds,
    path_probabilities,
)
from fastmtp_sglang.serving.drafting.lm_head_rows import LMHeadRows
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary

VOCAB, WIDTH, SLOTS = 96, 16, 8
EVEN, ODD, FULL = 0, 1, 2


def vocabulary(own_tokens: int = 0) -> DraftVocabulary:
    return DraftVocabulary(
        vocab_size=VOCAB,
        tokenizer_fingerprint="sha256:none",
        ids={"even": torch.arange(0, VOCAB, 2), "odd": torch.arange(1, VOCAB, 2)},
        token_scripts=torch.zeros(VOCAB, dtype=torch.int8),
        routes={},
        own_tokens=own_tokens,
    )


def rows(weight: torch.Tensor) -> LMHeadRows:
    shard = SimpleNamespace(org_vocab_start_index=0, org_vocab_end_index=VOCAB)
    made = LMHeadRows.of(SimpleNamespace(weight=weight, shard_indices=shard), weight.dtype)
    assert made is not None
    return made


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def head(weight) -> DraftHead:
    made = DraftHead(vocabulary(), rows(weight), processor(), SLOTS)
    made.router.lists[[1, 2, 3]] = torch.tensor([EVEN, ODD, FULL])
    return made


def batch(slots, mode="DECODE", **fields):
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return SimpleNamespace(
        req_pool_indices=torch.tensor(slots), forward_mode=ForwardMode[mode], **fields
    )


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
    assert head.next_ids[[3, 1, 2]].flatten().tolist() == expected
    # Other ranks have a request more.
    head.batch, head.slots = batch([2, 3, 0]), torch.tensor([2, 3])
    assert NextTokenIds(head)[torch.zeros(2, 1, dtype=torch.int64)].tolist() == [
        [expected[2]],
        [expected[0]],
    ]


def test_a_draft_extension_scores_the_last_accepted_row_of_each_request(head, weight):
    hidden = torch.randn(2 * 4, WIDTH, generator=torch.Generator().manual_seed(2))
    accept = torch.tensor([3, 1])
    head.batch = batch(
        [3, 3], "DRAFT_EXTEND_V2", spec_info=SimpleNamespace(num_accept_tokens=accept)
    )
    head.router.lists[4] = FULL
    head.batch.req_pool_indices = torch.tensor([3, 4])
    assert head.score(hidden).shape == (8, 1)
    every = torch.arange(VOCAB)
    assert head.next_ids[[3, 4]].flatten().tolist() == [
        best(weight, hidden[2], every),
        best(weight, hidden[4], every),
    ]


def test_padded_rows_and_empty_batches(head):
    head.batch = batch([1, 0, 0])
    head.score(torch.randn(3, WIDTH))
    assert (
        head.next_ids[0, 0, 0] == 0
    )  # slot 0 has no list: the fallback id, the lowest of the first
    head.batch = batch([], spec_info=None)
    head.batch.req_pool_indices = torch.empty(0, dtype=torch.int64)
    assert head.score(torch.empty(0, WIDTH)).shape == (0, 1)


@pytest.fixture
def branching(weight) -> DraftHead:
    made = DraftHead(vocabulary(), rows(weight), processor(softcap=4.0), SLOTS, top_k=3)
    made.router.lists[[1, 2, 3]] = torch.tensor([EVEN, ODD, FULL])
    return made


def shares(weight, hidden, ids) -> dict[int, float]:
    """Probability of each token of a list, by the whole softmax of it."""
    logits = 4.0 * ((weight[ids].double() @ hidden.double()) / 4.0).tanh()
    return dict(zip(ids.tolist(), logits.softmax(0).tolist(), strict=True))


def check_branches(head, weight, hidden, lists, logits) -> None:
    probabilities = path_probabilities(logits, None, False)
    columns = torch.tensor([[2, 0, 1]]).expand(len(hidden), -1)
    head.slots = head.batch.req_pool_indices
    tokens = NextTokenIds(head)[columns]
    for row, ids in enumerate(lists):
        expected = shares(weight, hidden[row], ids)
        best = sorted(expected, key=lambda token: -expected[token])[:3]
        assert tokens[row].tolist() == [best[2], best[0], best[1]]
        assert probabilities[row].tolist() == pytest.approx([expected[t] for t in best], rel=1e-5)


def test_branches_have_the_probabilities_of_the_whole_list(branching, weight):
    """After a prefill, in a draft step (three rows a request), and in a draft extension."""
    hidden = torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(1))
    every = torch.arange(VOCAB)
    lists = (every, every[::2], every[1::2])
    branching.batch = batch([3, 1, 2])
    assert len(NextTokenIds(branching)) == 3
    check_branches(branching, weight, hidden[:3], lists, branching.score(hidden[:3]))
    logits = branching.score(hidden)
    each = [ids for ids in lists for _ in range(3)]
    check_branches(branching, weight, hidden, each, logits)
    accept = torch.tensor([2, 3, 1])
    spec_info = SimpleNamespace(num_accept_tokens=accept)
    branching.batch = batch([3, 1, 2], "DRAFT_EXTEND_V2", spec_info=spec_info)
    chosen = torch.tensor([1, 5, 6])
    logits = branching.score(hidden)[chosen]
    check_branches(branching, weight, hidden[chosen], lists, logits)


def test_siblings_differ_even_after_a_broken_hidden_state(branching):
    branching.batch, branching.slots = batch([1]), torch.tensor([1])
    logits = branching.score(torch.full((1, WIDTH), torch.nan))
    assert path_probabilities(logits, None, False).tolist() == [[0.0] * 3]
    assert len(set(NextTokenIds(branching)[torch.tensor([[0, 1, 2]])][0].tolist())) == 3


def test_a_list_that_is_shorter_than_the_branches_is_refused(weight):
    short = vocabulary()
    short.ids["odd"] = torch.tensor([1, 3])
    with pytest.raises(FastMTPError, match=r"--speculative-eagle-topk 3: the list odd .* only 2"):
        DraftHead(short, rows(weight), processor(), SLOTS, top_k=3)


def test_the_processor_changes_class_and_nothing_else(weight):
    stock = processor(logit_scale=0.5, softcap=30.0)
    before = dict(vars(stock))
    head = DraftHead(vocabulary(), rows(weight), stock, SLOTS)
    assert type(stock) is DraftLogitsProcessor
    assert stock.draft_head is head
    assert {name: vars(stock)[name] for name in before} == before
    options = head._logits.options
    assert (options.scale, options.softcap) == (0.5, 30.0)


def test_a_list_of_a_shard(weight):
    """The second of two uneven tensor-parallel shards scores its own rows under global ids."""
    start = 60
    made = rows(weight[start:])
    made.shard = SimpleNamespace(org_vocab_start_index=start, org_vocab_end_index=VOCAB)
    head = DraftHead(vocabulary(), made, processor(), SLOTS)
    head.router.lists[1] = ODD
    hidden = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(3))
    head.batch = batch([1])
    head.score(hidden)
    assert int(head.next_ids[1, 0, 0]) == best(weight, hidden[0], torch.arange(start + 1, VOCAB, 2))


def test_rows_are_read_again_after_a_weight_update(head, weight):
    """The CPU's lists hold copies of an lm_head that SGLang may write new values into."""
    hidden = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(3))
    head.batch = batch([3])
    head.score(hidden)
    old = int(head.next_ids[3, 0, 0])
    weight.neg_()
    head.score(hidden)
    assert int(head.next_ids[3, 0, 0]) == old
    head.is_stale = True
    head.score(hidden)
    assert int(head.next_ids[3, 0, 0]) == best(weight, hidden[0], torch.arange(VOCAB)) != old
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


@pytest.mark.parametrize("top_k", [1, 3])
def test_own_tokens_are_drafted_along_with_the_list(weight, top_k: int):
    """In a draft step of every branch, and in a draft extension."""
    made = DraftHead(vocabulary(64), rows(weight), processor(), SLOTS, top_k=top_k)
    made.router.lists[[1, 2]] = torch.tensor([EVEN, ODD])
    made.router.own_tokens[1, EVEN, :3] = torch.tensor([1, 95, 33], dtype=torch.int32)
    made.router.own_tokens[2, ODD, :1] = torch.tensor([44], dtype=torch.int32)
    every = torch.arange(VOCAB)
    of_slot = {
        1: torch.cat((every[::2], every[[1, 33, 95]])),
        2: torch.cat((every[1::2], every[44:45])),
    }
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(2 * top_k, WIDTH, generator=generator)
    # Right after what each slot has of its own alone.
    hidden[0], hidden[top_k] = weight[33] * 9, weight[44] * 9
    accept = torch.ones(2, dtype=torch.int64)
    for mode in ("DECODE", "DRAFT_EXTEND_V2"):
        made.batch = batch([1, 2], mode, spec_info=SimpleNamespace(num_accept_tokens=accept))
        made.score(hidden)
        assert (made.next_ids[1, 0, 0], made.next_ids[2, 0, 0]) == (33, 44)
        for slot in (1, 2):
            for branch in range(top_k if mode == "DECODE" else 1):
                row = hidden[(slot - 1) * top_k + branch]
                scores = weight[of_slot[slot]].double() @ row.double()
                expected = of_slot[slot][scores.topk(top_k).indices]
                assert torch.equal(made.next_ids[slot, branch], expected)


class Ranks:
    """A group of two ranks, of which the other has drafted `theirs`, once that is set."""

    world_size = 2
    theirs: torch.Tensor

    def all_gather(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat((tensor, self.theirs), dim=dim)


@pytest.mark.parametrize("attention_alone", [False, True], ids=["all ranks", "dp lm_head"])
def test_ranks_that_share_an_lm_head_draft_together(monkeypatch, weight, attention_alone):
    """What they draft is what one rank with all rows would; of others nothing is asked."""
    groups = SimpleNamespace(tp_group=Ranks(), attn_tp_group=Ranks())
    group = groups.attn_tp_group if attention_alone else groups.tp_group
    monkeypatch.setattr(draft_head, "get_parallel", lambda: groups)
    hidden = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    asked, heads = batch([1, 2]), []
    for share in (torch.arange(VOCAB // 2), torch.arange(VOCAB // 2, VOCAB)):
        of_two = processor()
        of_two.do_tensor_parallel_all_gather = True
        of_two.use_attn_tp_group = attention_alone
        first = int(share[0])
        shard = SimpleNamespace(org_vocab_start_index=first, org_vocab_end_index=first + VOCAB // 2)
        lm_head = SimpleNamespace(weight=weight[share], shard_indices=shard)
        made = DraftHead(vocabulary(), LMHeadRows.of(lm_head, weight.dtype), of_two, SLOTS)
        made.router.lists[[1, 2]] = torch.tensor([EVEN, ODD])
        made.batch = asked
        heads.append(made)
    lists = heads[1].router.lists[asked.req_pool_indices]
    group.theirs = heads[1]._logits(hidden, lists, asked.req_pool_indices).keys
    heads[0].score(hidden)
    scores = hidden @ weight.T
    scores[0, 1::2] = scores[1, ::2] = -torch.inf
    assert heads[0].next_ids[[1, 2], 0, 0].tolist() == scores.argmax(1).tolist()
