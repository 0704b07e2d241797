"""Sampled verification on the CPU: renormalization, draws, and the distribution of what is emitted.

Random cases start from SEED; distributions are judged by chi-square, p > 0.001.
Alone: pytest tests/serving/cpu/test_sampling.py
"""

import pytest
import torch
from scipy.stats import chisquare

from fastmtp_sglang.serving.cpu.sampling import (
    keep_largest,
    sample_from,
    sample_kept,
    top_k_renorm,
    top_p_renorm,
)
from fastmtp_sglang.serving.cpu.tree import sample_tree_target_only

SEED = 20250918
LARGEST_COIN = 1 - 2**-24  # of torch.rand in float32


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + seed)


def random_probs(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    logits = 3 * torch.randn(rows, vocabulary, generator=generator(seed))
    return logits.softmax(1)


def normalized(row: list[float]) -> list[float]:
    total = sum(row)
    return [value / total for value in row]


def p_value(tokens: torch.Tensor, probs: torch.Tensor) -> float:
    """Chi-square of drawn tokens against float64 probabilities; never one of probability 0."""
    probs = probs.double() / probs.double().sum()
    counts = tokens.bincount(minlength=len(probs)).double()
    assert counts[probs == 0].sum() == 0
    possible = probs > 0
    return chisquare(counts[possible], probs[possible] * len(tokens)).pvalue


# --- top-k ---


@pytest.mark.parametrize("vocabulary", [1, 5, 300])
def test_top_k_keeps_the_largest(vocabulary):
    probs = random_probs(8, vocabulary)
    limits = torch.tensor([1, 2, 3, 7, vocabulary, vocabulary + 1, 1 << 30, 4], dtype=torch.int32)
    actual = top_k_renorm(probs, limits)
    for row, limit, result in zip(probs.double().tolist(), limits.tolist(), actual, strict=True):
        edge = sorted(row, reverse=True)[min(limit, vocabulary) - 1]
        expected = normalized([value if value >= edge else 0.0 for value in row])
        torch.testing.assert_close(result.double(), torch.tensor(expected, dtype=torch.float64))


def test_top_k_keeps_no_more_where_equals_lie_at_the_edge():
    """The first of them: bfloat16 logits have many, and SGLang's sampler keeps k."""
    probs = torch.tensor([[0.1, 0.2, 0.2, 0.2, 0.3]])
    expected = torch.tensor([[0.0, 0.4, 0.0, 0.0, 0.6]])
    torch.testing.assert_close(top_k_renorm(probs, torch.tensor([2])), expected)


def test_top_k_1_is_argmax_even_with_ties():
    """So a greedy request that shares a batch with sampled ones gets its greedy token."""
    probs = torch.tensor([[0.1, 0.3, 0.3, 0.3], [0.25, 0.25, 0.25, 0.25], [0.1, 0.2, 0.6, 0.1]])
    kept = top_k_renorm(probs, torch.tensor([1, 1, 1]))
    assert kept.tolist() == torch.eye(4)[probs.argmax(1)].tolist()
    assert top_k_renorm(probs, torch.tensor([1, 4, 1]))[1].tolist() == [0.25] * 4


# --- top-p ---


@pytest.mark.parametrize("vocabulary", [1, 5, 300])
def test_top_p_keeps_the_fewest_that_reach_the_limit(vocabulary):
    probs = random_probs(6, vocabulary)
    limits = torch.tensor([0.01, 0.3, 0.5, 0.9, 0.99, 1.0])
    actual = top_p_renorm(probs, limits)
    for row, limit, result in zip(probs.double().tolist(), limits.tolist(), actual, strict=True):
        kept = 0.0
        chosen = set()
        for token in sorted(range(vocabulary), key=lambda token: -row[token]):
            if kept >= limit and limit < 1:
                break
            chosen.add(token)
            kept += row[token]
        expected = normalized(
            [row[token] if token in chosen else 0.0 for token in range(vocabulary)]
        )
        torch.testing.assert_close(result.double(), torch.tensor(expected, dtype=torch.float64))


def test_top_p_counts_ties_one_by_one():
    kept = top_p_renorm(torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2]]), torch.tensor([0.5]))
    assert sorted(kept[0].tolist()) == pytest.approx([0.0, 0.0, 1 / 3, 1 / 3, 1 / 3])


def test_top_p_1_keeps_everything():
    """Also the tail after the point where a float32 sum has reached 1."""
    probs = torch.full((1, 100_001), 1e-10)
    probs[0, :2] = 0.5
    kept = top_p_renorm(probs, torch.tensor([1.0]))
    assert (kept > 0).all()


def test_top_p_below_the_largest_is_greedy():
    probs = torch.tensor([[0.1, 0.6, 0.3]])
    assert top_p_renorm(probs, torch.tensor([1e-6])).tolist() == [[0.0, 1.0, 0.0]]


# --- all of them ---


def kept_of_sorted(
    probs: torch.Tensor, k: torch.Tensor, p: torch.Tensor, min_p: torch.Tensor
) -> torch.Tensor:
    """`keep_largest` in float64, by sorting."""
    ordered, order = probs.double().sort(dim=1, descending=True, stable=True)
    before = ordered.cumsum(1) - ordered
    k, p, min_p = (limits.unsqueeze(1) for limits in (k, p, min_p))
    inside = (torch.arange(probs.shape[1]) < k) & ((p >= 1) | (before < p.double()))
    inside &= ordered >= ordered[:, :1] * min_p.double()
    kept = torch.zeros_like(ordered).scatter_(1, order, torch.where(inside, ordered, 0.0))
    return kept / kept.sum(1, keepdim=True)


@pytest.mark.parametrize("case", range(40))
def test_every_filter_sees_the_whole_row(case):
    """Rows of any width, steep and flat, some with equal entries, some mostly zeros."""
    g = generator(case)
    width = int(torch.randint(1, 3000, (), generator=g))
    logits = torch.randn(6, width, generator=g) * 4 * torch.rand(6, 1, generator=g)
    if case % 3 == 0:
        logits = logits.bfloat16().float()
    probs = logits.softmax(1)
    if case % 5 == 0:
        probs = torch.where(probs >= probs.median(1, keepdim=True).values, probs, 0.0)

    def sometimes(values: torch.Tensor, otherwise: float) -> torch.Tensor:
        return torch.where(torch.rand(6, generator=g) < 0.5, values, otherwise)

    filters = (
        sometimes(torch.randint(1, 60 if case % 2 else 9, (6,), generator=g), 1 << 30),
        sometimes(torch.rand(6, generator=g), 1.0),
        sometimes(torch.rand(6, generator=g) * 0.3, 0.0),
    )
    kept = keep_largest(probs, *filters)
    expected = kept_of_sorted(probs, *filters)
    assert torch.equal(kept > 0, expected > 0)
    torch.testing.assert_close(kept.double(), expected, atol=0, rtol=1e-5)
    coins = torch.rand(6, generator=g)
    cumulative = kept.double().cumsum(1)
    point = (coins.double() * cumulative[:, -1]).unsqueeze(1)
    drawn = torch.searchsorted(cumulative, point, right=True).squeeze(1)
    assert torch.equal(sample_from(kept, coins), drawn)
    assert torch.equal(sample_kept(probs, coins, *filters), drawn)


def test_a_row_whose_sum_misses_the_limit_is_kept_whole():
    """Its small entries are passed over at first, and needed after all."""
    probs = torch.full((1, 2000), 1e-6)
    probs[0, 7] = 0.3
    assert (keep_largest(probs, top_ps=torch.tensor([0.9])) > 0).all()
    drawn = sample_kept(probs.expand(2, -1), torch.tensor([0.0, LARGEST_COIN]), None, None)
    assert drawn.tolist() == [0, 1999]


# --- draws ---


@pytest.mark.parametrize("coin", [0.0, 2**-24, 0.5, LARGEST_COIN])
def test_no_draw_has_probability_0(coin):
    """Zeros in front, behind and between, at the ends of the coin's range."""
    rows = [
        [0.0, 0.0, 0.5, 0.0, 0.5, 0.0],
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        [0.0, 0.25, 0.25, 0.0, 0.5, 0.0],
        [0.0, 1e-30, 0.0, 1.0, 1e-30, 0.0],
    ]
    probs = torch.tensor(rows)
    drawn = sample_from(probs, torch.full((len(rows),), coin))
    assert (probs.gather(1, drawn.unsqueeze(1)) > 0).all()


def test_the_ends_of_the_coin_draw_the_ends_of_the_distribution():
    probs = torch.tensor([[0.0, 0.3, 0.3, 0.4, 0.0]]).repeat(2, 1)
    assert sample_from(probs, torch.tensor([0.0, LARGEST_COIN])).tolist() == [1, 3]


def test_random_draws_never_have_probability_0():
    source = generator(1)
    probs = random_probs(500, 4000, seed=2)
    probs[torch.rand(probs.shape, generator=source) < 0.9] = 0
    for _ in range(4):
        drawn = sample_from(probs, torch.rand(500, generator=source))
        assert (probs.gather(1, drawn.unsqueeze(1)) > 0).all()


def test_draws_follow_the_distribution():
    """Not normalized: what is left of a distribution after a rejection."""
    probs = random_probs(1, 30, seed=3) * 0.37
    probs[0, ::4] = 0
    drawn = sample_from(probs.expand(200_000, -1), torch.rand(200_000, generator=generator(4)))
    assert p_value(drawn, probs[0]) > 0.001


# --- verification of chains ---

TRIALS = 200_000


def verify(
    drafts: list[int], target_probs: torch.Tensor, trials: int, seed: int, **changes
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`trials` independent verifications of one chain.

    Returns tokens [trials, n], how many of them were emitted, and accept_index [trials, n].
    """
    source = generator(seed)
    n = target_probs.shape[0]
    predicts = torch.zeros(trials * n, dtype=torch.int32)
    accept_index = torch.full((trials, n), -7, dtype=torch.int32)
    accepted = torch.full((trials,), -7, dtype=torch.int32)
    arguments = {
        "predicts": predicts,
        "accept_index": accept_index,
        "accept_token_num": accepted,
        "candidates": torch.tensor([[0, *drafts]]).expand(trials, -1),
        "retrive_index": torch.arange(trials * n).view(trials, n),
        "retrive_next_token": torch.tensor([*range(1, n), -1]).expand(trials, -1),
        "retrive_next_sibling": torch.full((trials, n), -1),
        "uniform_samples": torch.rand(trials, n, generator=source),
        "uniform_samples_for_final_sampling": torch.rand(trials, generator=source),
        "target_probs": target_probs.expand(trials, -1, -1),
        "draft_probs": None,
        "threshold_single": 1.0,
        "threshold_acc": 1.0,
        "deterministic": True,
    }
    sample_tree_target_only(**(arguments | changes))
    return predicts.view(trials, n).long(), accepted.long() + 1, accept_index


def distribution(draft_probability: float, vocabulary: int, draft: int, seed: int) -> torch.Tensor:
    """Random probabilities in which `draft` has the given one."""
    probs = torch.rand(vocabulary, generator=generator(seed)) + 0.2
    probs[draft] = 0
    probs *= (1 - draft_probability) / probs.sum()
    probs[draft] = draft_probability
    return probs


@pytest.mark.parametrize("second", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("first", [0.0, 0.01, 0.4, 0.999])
def test_every_emitted_token_follows_the_target(first, second):
    """The distribution of each emitted token, given the ones before, whatever was drafted."""
    drafts = [3, 5]
    target = torch.stack(
        (
            distribution(first, 9, drafts[0], seed=10),
            distribution(second, 9, drafts[1], seed=11),
            distribution(0.1, 9, 0, seed=12),
        )
    )
    seed = 100 + int(1000 * first) + int(7000 * second)
    tokens, emitted, _ = verify(drafts, target, TRIALS, seed)
    assert p_value(tokens[:, 0], target[0]) > 0.001
    # A second token is emitted exactly where the first one is the draft.
    went_on = tokens[:, 0] == drafts[0]
    assert torch.equal(emitted > 1, went_on)
    if first > 0:
        assert p_value(tokens[went_on, 1], target[1]) > 0.001
    assert torch.equal(emitted > 2, went_on & (tokens[:, 1] == drafts[1]))
    if first > 0.1 and second > 0:
        assert p_value(tokens[emitted > 2, 2], target[2]) > 0.001
    accepted_first = went_on.double().mean().item()
    assert accepted_first == pytest.approx(first, abs=5 * (first * (1 - first) / TRIALS) ** 0.5)


def test_a_certain_draft_is_always_accepted_and_an_impossible_one_never():
    certain = torch.zeros(3, 6)
    certain[:, 2] = 1
    tokens, emitted, _ = verify([2, 2], certain, 1000, seed=1)
    assert (emitted == 3).all()
    assert (tokens == 2).all()
    tokens, emitted, _ = verify([4, 2], certain, 1000, seed=2)
    assert (emitted == 1).all()
    assert (tokens[:, 0] == 2).all()


@pytest.mark.parametrize("coin", [0.0, LARGEST_COIN])
def test_the_ends_of_the_coins(coin):
    """Coin 0 accepts all that is possible; the largest accepts only what is certain."""
    target = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    coins = {
        "uniform_samples": torch.full((1, 3), coin),
        "uniform_samples_for_final_sampling": torch.full((1,), coin),
    }
    tokens, emitted, _ = verify([0, 1], target, 1, 0, **coins)
    if coin == 0:
        assert tokens[0, : emitted[0]].tolist() == [0, 1, 0]
    else:
        assert tokens[0, : emitted[0]].tolist() == [1]
    _, emitted, _ = verify([2, 1], target, 1, 0, **coins)
    assert emitted.tolist() == [1]


def test_requests_of_a_batch_are_independent_and_rows_are_reported():
    """Two requests with other drafts and other distributions in one call, against each alone."""
    target = torch.stack([random_probs(4, 50, seed=s) for s in (20, 21)])
    candidates = torch.tensor([[1, 2, 3, 4], [9, *target[1, :3].argmax(1).tolist()]])
    coins = torch.rand(2, 4, generator=generator(22)) * 0.3
    final = torch.rand(2, generator=generator(23))

    def run(requests: slice) -> list[list]:
        bs = len(candidates[requests])
        chosen = torch.arange(4 * bs).view(bs, 4)
        predicts = torch.zeros(bs * 4, dtype=torch.int32)
        accept_index = torch.full((bs, 4), -7, dtype=torch.int32)
        accepted = torch.zeros(bs, dtype=torch.int32)
        sample_tree_target_only(
            predicts=predicts,
            accept_index=accept_index,
            accept_token_num=accepted,
            candidates=candidates[requests],
            retrive_index=chosen,
            retrive_next_token=torch.tensor([1, 2, 3, -1]).expand(bs, -1),
            retrive_next_sibling=torch.full((bs, 4), -1),
            uniform_samples=coins[requests],
            uniform_samples_for_final_sampling=final[requests],
            target_probs=target[requests],
            draft_probs=None,
            threshold_single=1.0,
            threshold_acc=1.0,
            deterministic=True,
        )
        for rows, count, reported in zip(chosen, accepted, accept_index, strict=True):
            kept = int(count) + 1
            assert reported.tolist() == rows[:kept].tolist() + [-1] * (4 - kept)
        return [accepted.tolist(), predicts.view(bs, 4).tolist()]

    together = run(slice(0, 2))
    alone = [run(slice(i, i + 1)) for i in (0, 1)]
    assert together == [alone[0][i] + alone[1][i] for i in (0, 1)]
    assert together[0][1] > 0  # otherwise acceptance was not seen
