"""The native operators for own tokens against their definitions in torch."""

import pytest
import torch

from fastmtp_kernels.torch_draft import torch_gathered, torch_joined
from fastmtp_sglang.serving.cpu import fused, own_tokens

SEED = 20250918
VOCAB, SLOTS, LISTS, NUMBER = 300, 4, 3, 64


def case(dtype: torch.dtype, width: int, rows: int = 6):
    """Hidden states, head, own ids (some entries free), request slots and lists of the rows."""
    generator = torch.Generator().manual_seed(SEED + width)
    hidden = torch.randint(-3, 4, (rows, width), generator=generator).float()
    head = torch.randint(-3, 4, (VOCAB, width), generator=generator).to(dtype)
    own_ids = torch.full((SLOTS, LISTS, NUMBER), -1, dtype=torch.int32)
    for slot in range(1, SLOTS):
        for which in range(LISTS):
            count = (0, 1, 17, 40, NUMBER)[(slot + which) % 5]
            tokens = torch.randperm(VOCAB, generator=generator)[:count]
            own_ids[slot, which, :count] = tokens.int()
    slots = torch.randint(SLOTS, (rows,), generator=generator)
    languages = torch.tensor([0, 1, 2, -1, LISTS, 1][:rows])
    return hidden, head, own_ids, slots, languages


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 31, 64, 100])
@pytest.mark.parametrize("shard", [(0, VOCAB), (100, 220)])
def test_gathered(dtype: torch.dtype, width: int, shard: tuple[int, int]):
    hidden, head, own_ids, slots, languages = case(dtype, width)
    head = head[shard[0] : shard[1]]
    expected, ids = torch_gathered(hidden, head, own_ids, slots, languages, shard)
    got, got_ids = own_tokens.gathered(hidden, head, own_ids, slots, languages, shard)
    assert torch.equal(got_ids, ids)
    assert torch.equal(got[ids >= 0], expected[ids >= 0])
    assert bool((got[ids < 0] == -torch.inf).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_has_the_score_that_it_has_in_a_list(dtype: torch.dtype):
    hidden, head, own_ids, slots, languages = case(dtype, 100)
    head = torch.randn(head.shape, generator=torch.Generator().manual_seed(SEED)).to(dtype)
    in_list = fused.draft_product(head)(hidden)
    got, ids = own_tokens.gathered(hidden, head, own_ids, slots, languages, (0, VOCAB))
    assert torch.equal(got[ids >= 0], in_list.gather(1, ids.clamp(min=0))[ids >= 0])


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("log_sum_exp", [True, False])
def test_joined(k: int, log_sum_exp: bool):
    generator = torch.Generator().manual_seed(SEED)
    rows, listed = 40, 50
    # Whole numbers, so that many scores are equal; the list holds even ids, own tokens odd ones.
    scores = torch.randint(-2, 3, (rows, listed), generator=generator).float()
    scores[torch.rand(rows, listed, generator=generator) < 0.02] = torch.inf
    scores[0] = -torch.inf
    values, places = scores.sort(dim=1, descending=True, stable=True)
    values, ids = values[:, :k].contiguous(), 2 * places[:, :k]
    ids[values == -torch.inf] = 0
    total = scores.logsumexp(1) if log_sum_exp else torch.empty(0)
    own = torch.randint(-2, 3, (rows, NUMBER), generator=generator).float()
    for special in (torch.nan, torch.inf, -torch.inf, -0.0):
        own[torch.rand(own.shape, generator=generator) < 0.05] = special
    own_ids = torch.stack(
        [2 * torch.randperm(150, generator=generator)[:NUMBER] + 1 for _ in range(rows)]
    )
    own_ids[torch.rand(own.shape, generator=generator) < 0.3] = -1
    own_ids[1] = -1
    expected = torch_joined(values.clone(), ids.clone(), total.clone(), own.clone(), own_ids)
    got = own_tokens.joined(values.clone(), ids.clone(), total.clone(), own.clone(), own_ids)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])
    torch.testing.assert_close(got[2], expected[2], rtol=1e-6, atol=1e-6)
