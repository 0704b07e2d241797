"""Seeds: what batches carry, and that a token depends on distribution, seed and position alone.

Alone: pytest tests/serving/verification/test_seeds.py
"""

import dataclasses
import importlib
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from sglang.kernels.ops.sampling import murmur_hash
from sglang.srt.layers import sampler
from sglang.srt.layers.sampler import Sampler
from sglang.srt.sampling.sampling_params import TOP_K_ALL, SamplingParams

from fastmtp_sglang.serving.cpu import seeded as on_a_cpu
from fastmtp_sglang.serving.cpu.sampling import sample_chain_from_proposal
from fastmtp_sglang.serving.cpu.tree import sample_tree_target_only
from fastmtp_sglang.serving.verification import seeds
from fastmtp_sglang.serving.verification.seeds import SeededBatchInfo, draw

SEED = 20250918
VOCAB = 12
PROBS = (1.5 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(SEED))).softmax(0)


@pytest.fixture(autouse=True)
def operators(monkeypatch):
    """Those of the CPU; undone after the test."""
    for module, name in (
        (murmur_hash, "murmur_hash32"),
        (sampler, "murmur_hash32"),
        (sampler, "multinomial_with_seed"),
        (sampler, "top_k_top_p_min_p_sampling_from_probs_torch"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    on_a_cpu.install(deterministic=False)


def params(**fields) -> SamplingParams:
    made = SamplingParams(**{"temperature": 1.0, **fields})
    made.normalize(None)
    return made


def batch_of(*requests: SamplingParams, deterministic: bool = False) -> SeededBatchInfo:
    info = SeededBatchInfo(
        temperatures=torch.ones(len(requests), 1),
        top_ps=torch.tensor([r.top_p for r in requests]),
        top_ks=torch.tensor([r.top_k for r in requests], dtype=torch.int32),
        min_ps=torch.tensor([r.min_p for r in requests]),
        is_all_greedy=False,
        is_any_greedy=False,
        need_top_p_sampling=any(r.top_p != 1 for r in requests),
        need_top_k_sampling=any(r.top_k != TOP_K_ALL for r in requests),
        need_min_p_sampling=any(r.min_p > 0 for r in requests),
        vocab_size=VOCAB,
        sampling_seed=torch.zeros(len(requests), dtype=torch.int64) if deterministic else None,
        device="cpu",
    )
    batch = SimpleNamespace(reqs=[SimpleNamespace(sampling_params=r) for r in requests])
    info.adjusted_from_schedule_batch(batch, VOCAB)
    return info


def drawn(info: SeededBatchInfo, rows: int, positions: torch.Tensor) -> dict[int, list[int]]:
    """The tokens of each seeded request, by its index."""
    probs = PROBS.expand(len(info.seed_of), rows, VOCAB)
    return {
        request: tokens
        for kind in info.seeded
        for request, tokens in zip(
            kind.requests.tolist(), draw(kind, probs, positions, info).tolist(), strict=True
        )
    }


SEEDED = params(sampling_seed=7)
FILTERED = params(sampling_seed=7, top_k=4, top_p=0.9)
WITH_MIN_P = params(sampling_seed=-1, min_p=0.3)
FREE, GREEDY = params(), params(temperature=0, sampling_seed=7)


def test_a_batch_without_seeds_has_none():
    info = batch_of(FREE, GREEDY)
    assert info.seeded == ()
    assert not info.all_seeded


def test_requests_come_and_go():
    info = batch_of(FREE, SEEDED, FILTERED)
    info.adjusted_filter_batch([0, 2], torch.tensor([0, 2]))
    assert [kind.requests.tolist() for kind in info.seeded] == [[1]]
    info.adjusted_merge_batch(batch_of(WITH_MIN_P, FREE, SEEDED))
    assert [kind.requests.tolist() for kind in info.seeded] == [[4], [1, 2]]
    assert [kind.seeds.tolist() for kind in info.seeded] == [[7], [7, -1]]
    # SGLang hands a forward pass a copy.
    assert dataclasses.replace(info).seeded is info.seeded
    info.adjusted_filter_batch([0, 3], torch.tensor([0, 3]))
    assert info.seeded == ()


def test_deterministic_inference_seeds_every_request_that_samples():
    info = batch_of(FREE, SEEDED, GREEDY, deterministic=True)
    assert [seed and seed.value for seed in info.seed_of] == [seeds.DETERMINISTIC_SEED, 7, None]


def test_a_token_depends_on_nothing_else_in_the_batch():
    positions = torch.tensor([[5, 6, 7]])
    alone = [drawn(batch_of(r), 3, positions)[0] for r in (SEEDED, FILTERED, WITH_MIN_P)]
    info = batch_of(WITH_MIN_P, FREE, FILTERED, GREEDY, SEEDED)
    together = drawn(info, 3, positions.expand(5, 3))
    assert together == {4: alone[0], 2: alone[1], 0: alone[2]}


def test_it_is_sglangs_token_for_a_lone_request():
    probs, place = PROBS.unsqueeze(0), torch.tensor([17])
    seed = torch.tensor([7])
    theirs = sampler.sampling_from_probs_torch(probs, seed, place)
    assert drawn(batch_of(SEEDED), 1, place.view(1, 1)) == {0: theirs.tolist()}
    filters = torch.tensor([4]), torch.tensor([0.9]), torch.zeros(1), False
    theirs = sampler.top_k_top_p_min_p_sampling_from_probs_torch(probs, *filters, seed, place)
    assert drawn(batch_of(FILTERED), 1, place.view(1, 1)) == {0: theirs.tolist()}


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ({}, VOCAB),
        ({"top_k": 4}, 4),
        ({"top_k": 5, "top_p": 0.6}, None),
        ({"min_p": 0.2, "top_p": 0.9}, None),
    ],
)
def test_over_seeds_the_distribution_is_the_targets(filters, kept):
    """100,000 consecutive seeds, chi-square, p > 0.001; the hash is fixed, so is the result."""
    count = 100_000
    request = params(sampling_seed=0, **filters)
    info = batch_of(request)
    (kind,) = info.seeded
    many = dataclasses.replace(
        kind, requests=torch.zeros(count, dtype=torch.int64), seeds=torch.arange(count)
    )
    tokens = draw(many, PROBS.view(1, 1, -1), torch.tensor([[9]]), info).flatten()
    order = PROBS.argsort(descending=True).tolist()
    before, expected = 0.0, {}
    for rank, token in enumerate(order):
        probability = PROBS[token].item()
        enough = probability >= request.min_p * PROBS.max().item()
        if rank < request.top_k and before <= request.top_p and enough:
            expected[token] = probability
        before += probability
    assert kept is None or len(expected) == kept
    counts = tokens.bincount(minlength=VOCAB)
    assert counts.sum() == counts[list(expected)].sum() == count
    total = sum(expected.values())
    wanted = [count * p / total for p in expected.values()]
    assert chisquare(counts[list(expected)].numpy(), wanted).pvalue > 0.001


def test_consecutive_positions_are_independent():
    """Pairs of tokens at neighbouring places, chi-square of independence, p > 0.001."""
    count = 50_000
    info = batch_of(SEEDED)
    (kind,) = info.seeded
    many = dataclasses.replace(
        kind, requests=torch.zeros(count, dtype=torch.int64), seeds=torch.arange(count)
    )
    probs = PROBS.expand(1, 2, VOCAB)
    first, second = draw(many, probs, torch.tensor([[9, 10]]), info).unbind(1)
    table = (first * VOCAB + second).bincount(minlength=VOCAB**2).view(VOCAB, VOCAB)
    often = table.sum(1) * 20 > count
    assert chi2_contingency(table[often][:, often].numpy()).pvalue > 0.001


@pytest.mark.parametrize("branches", [True, False])
def test_what_is_certain_is_accepted_and_nothing_else(branches):
    """Trees of random tokens, half of them made certain, and chains that were drawn from a head."""
    count, rows = 4000, 7
    generator = torch.Generator().manual_seed(SEED)
    if branches:  # 1 and 2 follow the root, 3 and 4 follow 1, 5 and 6 follow 2
        first, sibling = [1, 3, 5, -1, -1, -1, -1], [-1, 2, -1, 4, -1, 6, -1]
        children = {0: [1, 2], 1: [3, 4], 2: [5, 6]}
    else:
        first, sibling = [*range(1, rows), -1], [-1] * rows
        children = {row: [row + 1] for row in range(rows - 1)}
    # Siblings are different tokens.
    offers = torch.rand(count, rows, 3, generator=generator).argsort(2)[:, :, :2]
    candidates = torch.zeros(count, rows, dtype=torch.int64)
    for parent, below in children.items():
        for place, row in enumerate(below):
            candidates[:, row] = offers[:, parent, place]
    tokens = torch.randint(3, (count // 2, rows), generator=generator)
    requests = torch.arange(0, count, 2)
    probs = torch.rand(count, rows, 3, generator=generator).softmax(2)
    coins = torch.zeros(count, rows)  # at which any draft would be accepted
    others = probs[1::2].clone()
    seeds.make_certain(requests, tokens, probs, coins)
    assert torch.equal(probs[1::2], others)
    index = torch.arange(count * rows).view(count, rows)
    written = {
        "predicts": torch.zeros(count * rows, dtype=torch.int32),
        "accept_index": torch.full((count, 3 if branches else rows), -1, dtype=torch.int32),
        "accept_token_num": torch.zeros(count, dtype=torch.int32),
    }
    operator = sample_tree_target_only if branches else sample_chain_from_proposal
    operator(
        **written,
        candidates=candidates,
        retrive_index=index,
        retrive_next_token=torch.tensor(first).repeat(count, 1),
        retrive_next_sibling=torch.tensor(sibling).repeat(count, 1),
        uniform_samples=coins,
        uniform_samples_for_final_sampling=torch.rand(count, generator=generator),
        target_probs=probs,
        draft_probs=torch.rand(count, rows - 1, 3, generator=generator).softmax(2),
        threshold_single=1.0,
        threshold_acc=1.0,
        deterministic=True,
    )
    lengths = set()
    for request, wanted in zip(requests.tolist(), tokens.tolist(), strict=True):
        path = [0]
        while right := [
            row
            for row in children.get(path[-1], ())
            if candidates[request, row] == wanted[path[-1]]
        ]:
            path += right
        kept = [row for row in written["accept_index"][request].tolist() if row >= 0]
        assert kept == [request * rows + row for row in path]
        assert written["predicts"][kept].tolist() == [wanted[row] for row in path]
        lengths.add(len(path))
    assert len(lengths) == (3 if branches else rows)


def test_sglangs_sampler_obeys_seeds_and_leaves_the_others(monkeypatch):
    stock = Sampler._sample_from_probs
    monkeypatch.setattr(Sampler, "_sample_from_probs", stock)
    for name in seeds._USERS:
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "SamplingBatchInfo", module.SamplingBatchInfo)
    seeds.install()
    installed = Sampler._sample_from_probs
    seeds.install()
    assert Sampler._sample_from_probs is installed
    # Another test of this process may have been the first to install it.
    assert installed is not stock or stock.__module__ == seeds.__name__
    execution = SimpleNamespace(kernel=SimpleNamespace(sampling_backend="pytorch"))
    monkeypatch.setattr(sampler, "get_exec", lambda: execution)
    info = batch_of(FREE, FILTERED, SEEDED)
    probs, positions = PROBS.expand(3, VOCAB).contiguous(), torch.tensor([3, 4, 5])
    free = set()
    for _ in range(40):
        tokens, mask = installed(None, probs, info, positions, False)
        assert mask is None
        assert drawn(info, 1, positions.view(3, 1)) == {1: [tokens[1]], 2: [tokens[2]]}
        free.add(tokens[0].item())
    assert len(free) > 3


@pytest.mark.parametrize("filters", [{}, {"top_k": 4, "top_p": 0.9}])
def test_of_a_tree_only_what_can_be_reached_is_drawn(monkeypatch, filters):
    """The rows on each request's way have the tokens that drawing all rows gives."""
    source = torch.Generator().manual_seed(SEED)
    # Row 0 has the children 1, 2, 3; row 1 has 4, row 2 has 5 and 6.
    parent = torch.tensor([[-1, 0, 0, 0, 1, 2, 2]]).expand(200, -1)
    first_child = torch.tensor([[1, 4, 5, -1, -1, -1, -1]]).expand(200, -1)
    sibling = torch.tensor([[-1, 2, 3, -1, -1, 6, -1]]).expand(200, -1)
    n, depth = parent.shape[1], 3
    requests = [params(sampling_seed=seed, **filters) if seed % 4 else FREE for seed in range(200)]
    info = batch_of(*requests)
    probs = torch.rand(200, n, VOCAB, generator=source).softmax(2)
    candidates = torch.stack([torch.randperm(VOCAB, generator=source)[:n] for _ in range(200)])
    positions = torch.tensor([5, 6, 6, 6, 7, 7, 7]).expand(200, n)
    (kind,) = info.seeded
    every = draw(kind, probs, positions, info)
    counted = []
    stock = seeds.draw
    monkeypatch.setattr(
        seeds, "draw", lambda *args: (counted.append(args[1].shape[1]), stock(*args))[1]
    )
    rows = seeds.SeededRows(info, positions, None)
    ((which, tokens),) = rows.tokens(probs, candidates, (first_child, sibling), depth)
    assert torch.equal(which, kind.requests)
    assert counted == [1] * depth
    lengths = set()
    for index, request in enumerate(which.tolist()):
        row, length = 0, 0
        while row is not None:
            assert tokens[index, row] == every[index, row]
            length += 1
            following = [
                child
                for child in range(n)
                if parent[request, child] == row and candidates[request, child] == every[index, row]
            ]
            row = following[0] if following else None
        lengths.add(length)
    assert lengths == {1, 2, 3}
