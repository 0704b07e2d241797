"""Own tokens of a request: the same entries from a whole text and from any split of it."""

import numpy as np
import pytest
import torch

from fastmtp_sglang.serving.cpu import own_tokens as on_a_cpu
from fastmtp_sglang.serving.routing.own_tokens import hold_own, own_tokens_of, remember_in_torch

SEED = 20250918
VOCAB, LISTS, NUMBER = 400, 3, 64
# Each list holds the multiples of its number plus two; the last one everything, as the full
# vocabulary does.
MEMBERS = sum((torch.arange(VOCAB) % (which + 2) == 0).int() << which for which in range(LISTS - 1))
MEMBERS = (MEMBERS | 1 << (LISTS - 1)).int()


def kept(ids: torch.Tensor, stamps: torch.Tensor) -> list[int]:
    """The tokens of one slot and list, oldest first."""
    order = stamps.argsort()
    return ids[order][stamps[order] > 0].tolist()


def newest(tokens: list[int], which: int) -> list[int]:
    """The definition: the distinct tokens that the list lacks, by when they were last seen."""
    lacking = [t for t in tokens if 0 <= t < VOCAB and not int(MEMBERS[t]) >> which & 1]
    return list(dict.fromkeys(reversed(lacking)))[:NUMBER][::-1]


@pytest.mark.parametrize("length", [0, 1, 30, 700])
def test_a_whole_text_leaves_its_newest_tokens(length: int):
    tokens = np.random.default_rng(SEED).integers(-2, VOCAB + 2, length)
    ids, stamps = own_tokens_of(tokens, MEMBERS.numpy(), LISTS, NUMBER)
    assert ids.dtype == stamps.dtype == torch.int32
    for which in range(LISTS):
        assert kept(ids[which], stamps[which]) == newest(tokens.tolist(), which)
        used = int((ids[which] >= 0).sum())
        assert bool((ids[which, used:] == -1).all())
        assert bool((stamps[which, used:] == 0).all())


@pytest.mark.parametrize("remember", [remember_in_torch, on_a_cpu.remember])
@pytest.mark.parametrize("width", [1, 2, 5])
def test_any_split_of_a_text_leaves_the_same(remember, width: int):
    rng = np.random.default_rng(SEED + width)
    start = rng.integers(0, VOCAB, 50)
    text = start.tolist()
    own_ids = torch.full((3, LISTS, NUMBER), -1, dtype=torch.int32)
    own_stamps = torch.zeros_like(own_ids)
    own_ids[2], own_stamps[2] = own_tokens_of(start, MEMBERS.numpy(), LISTS, NUMBER)
    for _ in range(120):
        tokens = torch.from_numpy(rng.integers(-3, VOCAB + 3, (1, width)))
        count = int(rng.integers(0, width + 1))
        remember(MEMBERS, own_ids, own_stamps, torch.tensor([2]), tokens, torch.tensor([count]))
        text += tokens[0, :count].tolist()
        for which in range(LISTS):
            assert kept(own_ids[2, which], own_stamps[2, which]) == newest(text, which)
    assert bool((own_ids[:2] == -1).all())


def test_hold_own():
    own_ids = torch.tensor([[5, 7, -1], [2, -1, -1]], dtype=torch.int32)
    tokens = torch.tensor([[7, 2], [2, 5]])
    assert hold_own(own_ids, tokens).tolist() == [[True, False], [True, False]]
