"""The routing kernel against its definition in torch, interpreted (see interpreted.py)."""

import pytest
import torch
import triton
from routed_texts import SLOTS, compare_with_torch, vocabulary

from fastmtp_kernels.route import advance_routes
from fastmtp_sglang.serving.routing.router import _RULES, Router


def test_the_interpreter_is_on():
    assert triton.knobs.runtime.interpret


@pytest.mark.parametrize(("width", "runs"), [(4, 5), (7, 2)])
def test_equals_torch_while_texts_change_their_language(width: int, runs: int):
    compare_with_torch(advance_routes, width, runs)


def test_equals_torch_without_own_tokens():
    compare_with_torch(advance_routes, width=4, runs=4, own_tokens=0)


def test_padding_rows_leave_their_slot_alone():
    router = Router(vocabulary(), SLOTS, "cpu")
    before = [tensor.clone() for tensor in router.state]
    advance_routes(
        router._tables,
        router.state,
        _RULES,
        torch.tensor([0, 0]),
        torch.zeros(2, 4, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int32),
    )
    assert all(torch.equal(one, other) for one, other in zip(before, router.state, strict=True))
