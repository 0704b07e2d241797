"""Random cases for every implementation of ``DraftLogits``, and the comparison with the reference.

Half of the cases hold small integers, whose products and sums are exact in float32 in any order:
equal scores are then really equal, and the ids must be the reference's. The others hold normal
numbers in the head's dtype, and the score of the chosen id must be the reference's up to rounding.
Half of the cases have tokens of the requests' own beside the lists.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastmtp_kernels.draft_logits import NO_TOKEN, DraftLogits, DraftOptions, DraftTokens
from fastmtp_kernels.keys import decode_keys
from fastmtp_kernels.reference import reference_scores, reference_tokens
from fastmtp_kernels.slots import DraftSlots

Maker = Callable[[Tensor, DraftSlots, DraftOptions, Tensor | None], DraftLogits]

VOCABULARIES = (1, 2, 15, 64, 65, 128, 200, 331)
HIDDEN_SIZES = (1, 3, 16, 31, 64, 70, 128, 129, 200, 576)
SLOTS = 5
BATCHES = (1, 1, 1, 2, 2, 3, 4, 5, 7, 8, 16, 17, 33)


@dataclass
class Case:
    head: Tensor  # [V, D]
    hidden: Tensor  # [B, D]
    languages: Tensor  # int [B]
    lists: list[Tensor]
    options: DraftOptions
    exact: bool
    own_ids: Tensor | None  # int32 [request slots, lists, N]
    request_slots: Tensor  # int64 [B]

    def own(self) -> list[Tensor] | None:
        """The own tokens of each row."""
        if self.own_ids is None:
            return None
        rows = []
        for slot, language in zip(self.request_slots, self.languages.long(), strict=True):
            listed = 0 <= language < len(self.lists)
            kept = self.own_ids[slot, language if listed else 0].long()
            rows.append(kept[kept >= 0] if listed else kept[:0])
        return rows

    def slots(self, shard: tuple[int, int] | None = None) -> DraftSlots:
        names = (f"language {number}" for number in range(len(self.lists)))
        lists = dict(zip(names, self.lists, strict=True))
        return DraftSlots.build(lists, len(self.head), shard)


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    vocab, size, batch = (rng.choice(of) for of in (VOCABULARIES, HIDDEN_SIZES, BATCHES))
    dtype = rng.choice((torch.float32, torch.float16, torch.bfloat16))
    exact = rng.random() < 0.5
    shape = [(vocab, size), (batch, size)]
    if exact:
        head, hidden = (torch.randint(-2, 3, s).to(dtype) for s in shape)
    else:
        head, hidden = (torch.randn(s).to(dtype) for s in shape)
    if rng.random() < 0.4:  # duplicates of whole rows, the maximum among them
        head[torch.randint(vocab, (vocab,))] = head[torch.randint(vocab, (vocab,))]
    for matrix in (head, hidden):
        for _ in range(rng.choice((0, 0, 1, 2))):
            special = rng.choice((torch.nan, torch.inf, -torch.inf))
            column = rng.choice((slice(None), rng.randrange(size)))
            matrix[rng.randrange(len(matrix)), column] = special
    count = rng.choice((1, 2, 3, 6, 31))
    lists = [_random_list(rng, vocab) for _ in range(count)]
    index = rng.choice((torch.int32, torch.int64))
    languages = torch.randint(-1, count + 2, (batch,), dtype=index)
    options = DraftOptions(
        scale=rng.choice((1.0, 1.0, 0.0625)) if exact else rng.choice((1.0, 0.3)),
        softcap=0.0 if exact else rng.choice((0.0, 30.0)),
        top_k=rng.choice((1, 1, 2, 4, 8)),
        log_sum_exp=rng.random() < 0.5,
        fallback_id=rng.choice((0, vocab - 1)),
        max_batch=rng.choice((batch, batch + 3, 256)),
    )
    own_ids = _random_own_ids(rng, lists, vocab) if rng.random() < 0.5 else None
    request_slots = torch.randint(SLOTS, (batch,))
    return Case(head, hidden, languages, lists, options, exact, own_ids, request_slots)


def _random_own_ids(rng: random.Random, lists: list[Tensor], vocab: int) -> Tensor:
    """Some of what each list lacks, in any order."""
    number = rng.choice((64, 64, 128, 256))
    own_ids = torch.full((SLOTS, len(lists), number), NO_TOKEN, dtype=torch.int32)
    for slot in range(SLOTS):
        for index, listed in enumerate(lists):
            lacking = torch.arange(vocab)[~torch.isin(torch.arange(vocab), listed)]
            count = min(len(lacking), rng.choice((0, 1, 20, number)))
            own_ids[slot, index, :count] = lacking[torch.randperm(len(lacking))[:count]].int()
    return own_ids


def _random_list(rng: random.Random, vocab: int) -> Tensor:
    size = rng.choice((0, 1, vocab // 3, vocab // 2, vocab))
    return torch.randperm(vocab)[:size].sort().values


def assert_matches_reference(tokens: DraftTokens, case: Case) -> None:
    options, rows = case.options, len(case.hidden)
    ids, scores, log_sum_exp = reference_tokens(
        case.hidden, case.languages.tolist(), case.head, case.lists, options, case.own()
    )
    assert tokens.ids.shape == tokens.scores.shape == (rows, options.top_k)
    assert (tokens.ids.dtype, tokens.scores.dtype) == (torch.int64, torch.float32)
    decoded = decode_keys(tokens.keys, options.fallback_id)
    assert torch.equal(decoded[0], tokens.ids)
    assert torch.equal(decoded[1], tokens.scores)
    if case.exact:
        assert torch.equal(tokens.ids, ids)
    # Rounding grows with the length of the sum, not with its value, which may cancel.
    tolerance = 1e-5 * (1 + case.hidden.shape[1] ** 0.5)
    torch.testing.assert_close(tokens.scores.double(), scores, rtol=1e-5, atol=tolerance)
    for row in range(rows):
        chosen = tokens.ids[row][tokens.scores[row] > -torch.inf]
        assert len(chosen.unique()) == len(chosen)
        if len(chosen):
            allowed = case.lists[case.languages[row]]
            if case.own_ids is not None:
                allowed = torch.cat((allowed, case.own()[row]))
            assert torch.isin(chosen, allowed).all()
            again = reference_scores(case.hidden[row], case.head, chosen, options)
            torch.testing.assert_close(again, scores[row, : len(chosen)], rtol=1e-5, atol=tolerance)
    if options.log_sum_exp:
        torch.testing.assert_close(
            tokens.log_sum_exp.double(), log_sum_exp, rtol=1e-5, atol=tolerance
        )
    else:
        assert tokens.log_sum_exp is None


def draft(case: Case, make: Maker) -> DraftTokens:
    draft_logits = make(case.head, case.slots(), case.options, case.own_ids)
    return draft_logits(case.hidden, case.languages, case.request_slots)


def draft_sharded(case: Case, make: Maker, seed: int) -> DraftTokens:
    """As ``draft``, by tensor-parallel ranks with uneven shards of the head, some without rows."""
    vocab = len(case.head)
    cuts = sorted(random.Random(seed).choices(range(vocab + 1), k=seed % 4))
    shards = list(zip([0, *cuts], [*cuts, vocab], strict=True))
    ranks = [
        make(case.head[a:b], case.slots((a, b)), case.options, case.own_ids) for a, b in shards
    ]
    found = [rank(case.hidden, case.languages, case.request_slots) for rank in ranks]
    log_sum_exp = None
    if case.options.log_sum_exp:
        log_sum_exp = torch.stack([tokens.log_sum_exp for tokens in found])
    return ranks[0].merge(torch.stack([tokens.keys for tokens in found]), log_sum_exp)
