"""Penalties of verified rows are, bit for bit, what SGLang's penalizers compute token by token.

The reference is `sglang.srt.sampling.penaltylib`, one request and one token at a time. Random cases
start from SEED. Alone: pytest tests/serving/verification/test_penalties.py
"""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from sglang.srt.sampling import penaltylib
from sglang.srt.sampling.penaltylib.orchestrator import BatchedPenalizerOrchestrator

from fastmtp_sglang.serving.verification.penalties import (
    NoPenalizers,
    Paths,
    Penalties,
    PrefillPenalties,
    _Batch,
)

SEED = 20250918
VOCAB = 50
# SGLang gives a set of classes, whose order is another one in each process; with overlapped
# scheduling it always scales last.
PENALIZERS = (
    penaltylib.BatchedFrequencyPenalizer,
    penaltylib.BatchedMinNewTokensPenalizer,
    penaltylib.BatchedPresencePenalizer,
    penaltylib.BatchedRepetitionPenalizer,
)
# 0.1 and 0.7 are rounded, so that n * penalty and n additions differ in the last bit.
CASES = {
    "none": {},
    "frequency": {"frequency_penalty": 0.1},
    "presence": {"presence_penalty": -0.7},
    "repetition": {"repetition_penalty": 1.3},
    "at_least_9": {"min_new_tokens": 9},
    "all": {
        "frequency_penalty": 0.7,
        "presence_penalty": 0.3,
        "repetition_penalty": 0.9,
        "min_new_tokens": 14,
    },
}


class Request:
    """The part of SGLang's Req that penalties read."""

    def __init__(self, *, stops: tuple[int, ...] = (3, 7), output: tuple = (), **penalties) -> None:
        defaults = {
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "repetition_penalty": 1.0,
            "min_new_tokens": 0,
            "stop_token_ids": set(stops),
        }
        self.sampling_params = SimpleNamespace(**defaults | penalties)
        self.eos_token_ids = {2} if stops else None
        self.tokenizer = SimpleNamespace(
            additional_stop_token_ids=None, eos_token_id=2 if stops else None
        )
        self.output_ids = list(output)
        self.over = False

    def finished(self) -> bool:
        return self.over


def reference(request: Request, logits: torch.Tensor) -> torch.Tensor:
    """SGLang's logits [vocab] after the request's output so far."""
    batch = _Batch([request])
    stock = BatchedPenalizerOrchestrator(VOCAB, batch, PENALIZERS)
    for token in request.output_ids:
        stock.cumulate_output_tokens(torch.tensor([token]))
    additive = torch.zeros(1, VOCAB)
    stock.accumulate_additive_penalties(additive)
    logits = logits.unsqueeze(0) + additive
    scaling = stock.accumulate_scaling_penalties()
    if scaling is not None:
        # The formula of SGLang's `apply_scaling_penalties`, which is compiled there.
        logits = torch.where(logits < 0, logits * scaling, logits / scaling)
    return logits[0]


def links(parents: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """First child and next sibling of each row of a tree, int64 [n]."""
    n = len(parents)
    families = [[i for i in range(1, n) if parents[i] == row] for row in range(n)]
    first = [family[0] if family else -1 for family in families]
    following = {a: b for family in families for a, b in pairwise(family)}
    return torch.tensor(first), torch.tensor([following.get(row, -1) for row in range(n)])


def path_to(parents: list[int], row: int) -> list[int]:
    """Rows from the root's child down to `row`."""
    return [] if row == 0 else [*path_to(parents, parents[row]), row]


def verify(penalties, batch, draws, *, n: int, trees: bool = False) -> None:
    """One verification of a batch, checked at every row; requests get what is accepted."""
    selection = penalties.select(batch)
    logits = 3 * torch.randn(len(batch), n, VOCAB, generator=draws)
    tokens = torch.randint(0, 6, (len(batch), n), generator=draws)
    expected = torch.empty_like(logits)
    linked, accepted = [], torch.full((len(batch), n), 49)  # what is not accepted must not count
    kept = torch.randint(0, n, (len(batch),), generator=draws)
    for i, request in enumerate(batch):
        before = list(request.output_ids)
        parents = [max(0, j - 1) for j in range(n)]
        if trees:
            parents = [int(torch.randint(max(j, 1), (), generator=draws)) for j in range(n)]
        linked.append(links(parents))
        for j in range(n):
            request.output_ids = before + tokens[i, path_to(parents, j)].tolist()
            expected[i, j] = reference(request, logits[i, j])
        path = path_to(parents, int(kept[i]))
        bonus = torch.randint(0, 6, (1,), generator=draws)
        run = torch.cat((tokens[i, path], bonus))
        accepted[i, : len(run)] = run
        kept[i] = len(run)
        request.output_ids = before + run.tolist()
    if selection is not None:
        first, sibling = (torch.stack(side) for side in zip(*linked, strict=True))
        penalties.apply(selection, logits, Paths.of(tokens, first, sibling, n - 1))
        penalties.count(selection, accepted.to(torch.int32), kept.to(torch.int32))
    assert torch.equal(logits, expected)


@pytest.mark.parametrize("name", CASES)
def test_every_row_of_a_tree_equals_token_by_token(name):
    """Each row has the penalties of its own path; siblings do not see each other."""
    draws = torch.Generator().manual_seed(SEED)
    penalties = Penalties(VOCAB, "cpu")
    batch = [Request(**CASES[name]) for _ in range(3)]
    penalties.start(batch)
    for _ in range(6):
        verify(penalties, batch, draws, n=7, trees=True)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_every_position_equals_token_by_token(name, n):
    draws = torch.Generator().manual_seed(SEED + n)
    penalties = Penalties(VOCAB, "cpu")
    batch = [Request(**CASES[name]) for _ in range(3)]
    penalties.start(batch)
    for _ in range(8):
        verify(penalties, batch, draws, n=n)


def test_requests_come_go_and_return():
    """Batches that grow, shrink and are reordered; rows and memory are used again."""
    draws = torch.Generator().manual_seed(SEED)
    penalties = Penalties(VOCAB, "cpu")
    kinds = list(CASES.values())
    batch: list[Request] = []
    for step in range(60):
        if step % 3 == 0:
            stops = tuple(range(8, 8 + step % 5))
            new = [Request(stops=stops, **kinds[(step // 3 + i) % len(kinds)]) for i in range(3)]
            penalties.start(new)
            batch = new + batch
        if step % 4 == 3:
            for request in batch[2::3]:
                request.over = True
            batch = [request for request in batch if not request.over]
        if step % 10 == 9:  # retracted, its last tokens lost, and prefilled again
            batch[0].output_ids = batch[0].output_ids[:-1]
            penalties.start([batch[0]])
            batch = batch[1:] + batch[:1]
        verify(penalties, batch, draws, n=1 + step % 4)
    assert len(penalties._length) < 60


def test_only_requests_with_penalties_cost_memory():
    penalties = Penalties(VOCAB, "cpu")
    penalties.start([Request() for _ in range(10)])
    assert penalties._frequency.numel() == 0
    assert penalties.select([Request() for _ in range(10)]) is None
    penalties.start([Request(presence_penalty=1.0)])
    assert len(penalties._frequency) <= 2


def test_rows_of_dead_requests_are_reused():
    penalties = Penalties(VOCAB, "cpu")
    for _ in range(12):
        request = Request(frequency_penalty=1.0)
        penalties.start([request])
        selection = penalties.select([request])
        assert selection is not None
        penalties.count(selection, torch.tensor([[5]]), torch.tensor([1]))
        del request, selection
    assert len(penalties._length) <= 4


def test_a_request_that_was_prefilled_elsewhere():
    draws = torch.Generator().manual_seed(SEED)
    penalties = Penalties(VOCAB, "cpu")
    batch = [Request(output=(4, 4, 1), **CASES["all"])]
    verify(penalties, batch, draws, n=4)


def test_without_stop_tokens_min_new_tokens_bars_nothing():
    penalties = Penalties(VOCAB, "cpu")
    barring, free = Request(min_new_tokens=5), Request(stops=(), min_new_tokens=5)
    penalties.start([barring, free])
    logits = torch.zeros(2, 1, VOCAB)
    no_drafts = Paths.of(*torch.full((3, 2, 1), -1), num_steps=0)
    penalties.apply(penalties.select([free, barring]), logits, no_drafts)
    assert logits[0].eq(0).all()
    assert logits[1, 0].isneginf().nonzero().flatten().tolist() == [2, 3, 7]


def test_first_token_after_a_prefill():
    penalties = Penalties(VOCAB, "cpu")
    batch = [Request(), Request(output=(4, 4), frequency_penalty=0.5), Request(min_new_tokens=1)]
    penalties.start(batch)
    logits = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(SEED))
    expected = torch.stack([reference(r, row) for r, row in zip(batch, logits, strict=True)])
    PrefillPenalties(penalties, penalties.select(batch)).apply(logits)
    assert torch.equal(logits, expected)


def test_stock_penalizers_are_off():
    batch = _Batch([Request(presence_penalty=1.0)])
    stock = NoPenalizers(VOCAB, batch, PENALIZERS)
    assert not stock.is_required
    assert not stock.penalizers
    other = NoPenalizers(VOCAB, batch, PENALIZERS)
    stock.merge(other)
    stock.filter(torch.tensor([0]))
    assert not stock.is_required
