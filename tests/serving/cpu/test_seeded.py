"""Seeded sampling on a CPU gives SGLang's tokens: its hash bit by bit, its filters without a sort.

Alone: pytest tests/serving/cpu/test_seeded.py
"""

import pytest
import torch
from sglang.kernels.ops.sampling import murmur_hash
from sglang.srt.layers import sampler
from sglang.srt.sampling.sampling_params import TOP_K_ALL
from triton.runtime.interpreter import InterpretedFunction

from fastmtp_sglang.serving.cpu import seeded

SEED = 20250918
SEEDS = torch.tensor([0, 1, -1, 42, 2**63 - 1, -(2**63), 2**32, 12345678901234])
POSITIONS = torch.tensor([0, 1, 2, 4095, 2**31 - 1, 7, 8, 131072])


@pytest.fixture
def installed(monkeypatch):
    """As in a server; undone after the test."""
    for module, name in (
        (murmur_hash, "murmur_hash32"),
        (sampler, "murmur_hash32"),
        (sampler, "multinomial_with_seed"),
        (sampler, "sampling_from_probs_torch"),
        (sampler, "top_k_top_p_min_p_sampling_from_probs_torch"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    seeded.install(deterministic=False)


def test_the_hash_is_that_of_sglangs_kernel(monkeypatch):
    for name in ("rotl32", "fmix32", "murmur3_mix"):
        interpreted = InterpretedFunction(getattr(murmur_hash, name).fn)
        monkeypatch.setattr(murmur_hash, name, interpreted)
    kernel = InterpretedFunction(murmur_hash.murmur_hash32_kernel.fn)
    rows, columns = len(SEEDS), torch.arange(1500)
    theirs = torch.empty(rows, len(columns), dtype=torch.uint32)
    sizes = rows, len(columns)
    kernel[rows, 2](SEEDS.to(torch.uint64), POSITIONS, columns, theirs, *sizes, BLOCK_SIZE=1024)
    for seeds in (SEEDS, SEEDS.to(torch.uint64)):
        ours = seeded.murmur_hash32(seeds, POSITIONS, columns)
        assert torch.equal(ours, theirs.to(torch.int64))


@pytest.mark.parametrize("spread", [0.5, 6.0])
@pytest.mark.parametrize("top_k", [1, 7, 512, 513, TOP_K_ALL])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 1.0])
def test_filters_without_a_sort_change_no_token(installed, spread, top_k, top_p):
    """Flat rows, of which the first entries hold little, and steep ones."""
    rows, vocab = 24, 4096
    generator = torch.Generator().manual_seed(SEED)
    probs = (spread * torch.randn(rows, vocab, generator=generator)).softmax(1)
    filters = (
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p),
        torch.zeros(rows),
        False,
    )
    seeds, positions = torch.arange(rows) * 7919, torch.arange(rows)
    arguments = (probs, *filters, seeds, positions)
    ours = sampler.top_k_top_p_min_p_sampling_from_probs_torch
    tokens = ours(*arguments)
    assert torch.equal(tokens, ours.args[0](*arguments))
    lone = [ours(*(a[r : r + 1] if torch.is_tensor(a) else a for a in arguments)) for r in (3, 11)]
    assert torch.cat(lone).tolist() == tokens[[3, 11]].tolist()


@pytest.mark.parametrize("spread", [0.5, 6.0])
def test_few_logarithms_change_no_token(installed, spread):
    rows, vocab = 64, 3000
    generator = torch.Generator().manual_seed(SEED + 1)
    probs = (spread * torch.randn(rows, vocab, generator=generator)).softmax(1)
    probs[:, 1::3] = 0.0
    seeds = torch.randint(-(2**62), 2**62, (rows,), generator=generator)
    positions = torch.randint(0, 10_000, (rows,), generator=generator)
    theirs = sampler.multinomial_with_seed(probs.log(), seeds, positions).squeeze(1)
    ours = sampler.sampling_from_probs_torch(probs, sampling_seed=seeds, positions=positions)
    assert torch.equal(ours, theirs.int())


def test_sglangs_sampler_does_not_sort(installed, monkeypatch):
    """As it calls ours, without a seed."""
    monkeypatch.setattr(torch.Tensor, "sort", None)
    monkeypatch.setattr(torch, "topk", None)
    probs = torch.eye(3, 600)
    ones = torch.ones(3)
    tokens = sampler.top_k_top_p_min_p_sampling_from_probs_torch(
        *(probs, torch.full((3,), 5), ones, 0 * ones, False, None, torch.arange(3)),
        return_filtered_probs=False,
        max_top_k=5,
    )
    assert tokens.tolist() == [0, 1, 2]


def test_what_was_kept_comes_from_sglang(installed):
    probs, ones = torch.tensor([[0.1, 0.6, 0.3]]), torch.ones(1)
    token, kept, ids, weight = sampler.top_k_top_p_min_p_sampling_from_probs_torch(
        *(probs, torch.full((1,), 1), ones, 0 * ones, False, None, torch.arange(1)),
        return_filtered_probs=True,
        max_top_k=1,
    )
    assert (token.tolist(), ids[0, 0].item()) == ([1], 1)
    assert kept[0].tolist() == pytest.approx([0.6, 0.0, 0.0])
    assert weight.tolist() == pytest.approx([0.6])


def test_it_is_installed_once(installed):
    before = sampler.top_k_top_p_min_p_sampling_from_probs_torch
    seeded.install(deterministic=False)
    assert sampler.top_k_top_p_min_p_sampling_from_probs_torch is before
