"""What rows of a tree see, against masks written cell by cell.

Alone: pytest tests/serving/cpu/test_visibility.py
"""

import pytest
import torch

from fastmtp_sglang.serving.cpu.visibility import (
    Visibility,
    of_drafted_branches,
    of_verified_tree,
)

WIDTH = 90


@pytest.mark.parametrize("num_rows", [2, 5, 63, 64])
def test_a_verified_tree(num_rows):
    source = torch.Generator().manual_seed(num_rows)
    seq_lens = torch.tensor([1, 20, 7])
    mask = torch.rand(3, num_rows, num_rows, generator=source) < 0.5
    seen = of_verified_tree(seq_lens.int(), mask.flatten(), num_rows)
    dense = seen.dense(WIDTH)
    assert dense.shape == (3, num_rows, WIDTH)
    for request, length in enumerate(seq_lens.tolist()):
        for row in range(num_rows):
            expected = [
                key < length or (key < length + num_rows and bool(mask[request, row, key - length]))
                for key in range(WIDTH)
            ]
            assert dense[request, row].tolist() == expected
            ancestors = int(mask[request, row].sum())
            assert seen.position[request, row] == length + ancestors - 1


@pytest.mark.parametrize(("topk", "num_steps"), [(1, 4), (2, 3), (8, 3), (8, 8), (1, 64)])
def test_branches_that_are_drafted(topk, num_steps):
    """Each branch has its own `num_steps` slots, as `per_step_draft_out_cache_loc` cuts them."""
    from sglang.srt.speculative.eagle_utils import per_step_draft_out_cache_loc

    seq_lens = torch.tensor([3, 11])
    places = torch.cat([length + torch.arange(topk * num_steps) for length in seq_lens])
    written = per_step_draft_out_cache_loc(places, 2, topk, num_steps).view(num_steps, 2, topk)
    for step in range(num_steps):
        seen = of_drafted_branches(seq_lens, topk, num_steps, step)
        for request, length in enumerate(seq_lens.tolist()):
            for branch in range(topk):
                keys = {*range(length), *written[: step + 1, request, branch].tolist()}
                dense = seen.dense(length + 64)[request, branch]
                assert dense.nonzero().flatten().tolist() == sorted(keys)
        assert (seen.position == seq_lens.unsqueeze(1) + step).all()


def test_without_bits_only_the_prefix_is_seen():
    seen = Visibility(torch.tensor([[2, 3]]), torch.zeros(1, 2, dtype=torch.int64))
    assert seen.dense(5).long().tolist() == [[[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]]
    assert seen.position.tolist() == [[1, 2]]
