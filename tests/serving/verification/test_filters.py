"""The filtered target distribution is that of SGLang's own sampler.

The reference is the sampler without kernels, which reports the weights that it draws from; random
rows start from SEED. Alone: pytest tests/serving/verification/test_filters.py
"""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.sampler import top_k_top_p_min_p_sampling_from_probs_torch

from fastmtp_sglang.serving.cpu.sampling import top_k_renorm, top_p_renorm
from fastmtp_sglang.serving.verification.filters import Filters, target_distribution

SEED = 20250918
ALL = 1 << 30  # SGLang's top_k of a request without one


def probs(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(SEED + seed))
    return (2 * logits).softmax(1)


def sampler_weights(rows: torch.Tensor, top_ks, top_ps, min_ps) -> torch.Tensor:
    """What SGLang's sampler draws from, normalized."""
    _, weights, ids, _ = top_k_top_p_min_p_sampling_from_probs_torch(
        rows.clone(),
        torch.tensor(top_ks),
        torch.tensor(top_ps),
        torch.tensor(min_ps),
        any(min_ps),
        None,
        torch.zeros(len(rows)),
        return_filtered_probs=True,
    )
    full = torch.zeros_like(rows).scatter_(1, ids.long(), weights)
    return full / full.sum(1, keepdim=True)


def sampling_info(top_ks, top_ps, min_ps) -> SimpleNamespace:
    """The part of SGLang's batch info that is read, for a batch that samples."""
    return SimpleNamespace(
        is_all_greedy=False,
        top_ks=torch.tensor(top_ks, dtype=torch.int32),
        top_ps=torch.tensor(top_ps),
        min_ps=torch.tensor(min_ps),
        need_top_k_sampling=any(k != ALL for k in top_ks),
        need_top_p_sampling=any(p != 1 for p in top_ps),
        need_min_p_sampling=any(p > 0 for p in min_ps),
    )


def filtered(rows: torch.Tensor, filters: Filters | None) -> torch.Tensor:
    if filters is None:
        return rows
    return target_distribution(rows, filters, top_k_renorm, top_p_renorm)


@pytest.mark.parametrize("vocabulary", [3, 60, 3000])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.6])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
@pytest.mark.parametrize("top_k", [ALL, 20, 2])
def test_one_request(vocabulary, top_k, top_p, min_p):
    n = 4
    rows = probs(n, vocabulary)
    filters = Filters.of(sampling_info([top_k], [top_p], [min_p]), n, "pytorch")
    expected = sampler_weights(rows, [top_k] * n, [top_p] * n, [min_p] * n)
    actual = filtered(rows, filters)
    # With top-p 1 the sampler loses what comes after its rounded sums have passed 1.
    different = (actual > 0) != (expected > 0)
    assert not different.any() or (top_p == 1 and rows[different].max() < 1e-5)
    torch.testing.assert_close(actual, expected)


def test_requests_of_a_batch_do_not_see_each_other():
    settings = [(k, p, m) for k in (ALL, 1, 7) for p in (1.0, 0.7) for m in (0.0, 0.2)]
    top_ks, top_ps, min_ps = map(list, zip(*settings, strict=True))
    rows = probs(2 * len(settings), 500)
    together = filtered(rows, Filters.of(sampling_info(top_ks, top_ps, min_ps), 2, "pytorch"))
    twice = [[value for value in values for _ in range(2)] for values in (top_ks, top_ps, min_ps)]
    torch.testing.assert_close(together, sampler_weights(rows, *twice))


def test_top_p_looks_at_the_whole_distribution():
    """SGLang's verification takes it of the rest, and so another set."""
    rows = torch.tensor([[0.3, 0.28, 0.22, 0.2]])
    joint = filtered(rows, Filters.of(sampling_info([2], [0.5], [0.0]), 1, "pytorch"))
    assert joint.gt(0).sum() == 2
    assert top_p_renorm(top_k_renorm(rows, torch.tensor([2])), torch.tensor([0.5])).gt(0).sum() == 1


def test_flashinfer_takes_one_after_another_where_there_is_a_min_p():
    rows = torch.tensor([[0.3, 0.28, 0.22, 0.2]]).repeat(2, 1)
    info = sampling_info([2, 2], [0.5, 0.5], [0.1, 0.0])
    kept = filtered(rows, Filters.of(info, 1, "flashinfer"))
    assert kept.gt(0).sum(1).tolist() == [1, 2]


def test_a_greedy_row_keeps_its_argmax_among_equals():
    rows = torch.full((1, 600), 1 / 600)
    kept = filtered(rows, Filters.of(sampling_info([1], [0.001], [0.5]), 1, "pytorch"))
    assert kept.argmax() == 0
    assert kept.sum() == 1


def test_nothing_to_filter():
    info = sampling_info([ALL], [1.0], [0.0])
    assert Filters.of(info, 4, "pytorch") is None
    info = sampling_info([1], [0.5], [0.5])
    info.is_all_greedy = True
    assert Filters.of(info, 4, "pytorch") is None


def test_a_flat_nucleus_is_found_beyond_the_first_entries():
    """Where the CPU's shortcut does not reach; each limit against a full sort."""
    rows = torch.cat((probs(2, 3000), torch.full((1, 3000), 1 / 3000)))
    for limit in (0.1, 0.8, 0.999):
        kept = top_p_renorm(rows, torch.full((3,), limit))
        ordered = rows.sort(dim=1, descending=True).values.double()
        expected = (ordered.cumsum(1) - ordered < limit).sum(1)
        assert (kept.gt(0).sum(1) - expected).abs().max() <= 1  # rounded sums
        torch.testing.assert_close(kept.sum(1), torch.ones(3))
