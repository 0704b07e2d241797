"""The routing kernel: compiled for GPUs that this machine does not have, and its state at rest.

What it computes is shown under Triton's interpreter, by interpreted_route.py, and on a CPU by
tests/serving/cpu/native/test_routes.py.
Alone: pytest tests/kernels/test_route.py
"""

import pytest
import torch
import triton
from kernel_compiler import TARGETS, compile_offline, resources

from fastmtp_kernels import route
from fastmtp_kernels.draft_logits import NO_TOKEN, OWN_TOKENS

ROUTE_TYPES = {
    "slots": "*i64",
    "token_ids": "*i32",
    "accept_lens": "*i32",
    "token_scripts": "*i8",
    "members": "*i32",
    "routes": "*i64",
    "language_of_script": "*i64",
    "scripts": "*fp32",
    "language_state": "*i64",
    "named_state": "*i64",
    "wanted_state": "*i64",
    "seen_state": "*fp32",
    "outside_state": "*fp32",
    "left_state": "*i1",
    "list_state": "*i64",
    "counts": "*i64",
    "own_ids": "*i32",
    "token_stride": "i32",
    "vocab_size": "i32",
    "full_list": "i32",
    "num_languages": "i32",
}


@pytest.mark.heavy
@pytest.mark.skipif(
    triton.knobs.runtime.interpret, reason="TRITON_INTERPRET=1 replaces the compiler"
)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("width", [2, 8])
@pytest.mark.parametrize("own", OWN_TOKENS[::3])
def test_routing_compiles_without_spills(target: str, width: int, own: int):
    rules = {
        "LATIN": 2,
        "HAN": 3,
        "KANA": 4,
        "CODE": 1,
        "OTHER": 15,
        "CODE_LANGUAGE": 13,
        "KANA_LANGUAGE": 2,
        "HALF_LIFE": 32.0,
        "MIN_EVIDENCE": 4.0,
        "LATIN_WEIGHT": 0.5,
        "MIN_KANA_SHARE": 0.1,
        "MIN_CODE_SIGNS": 0.25,
        "LEAVE_ABOVE": 0.2,
        "RETURN_BELOW": 0.1,
        "MIN_SEEN": 8.0,
    }
    compiled = compile_offline(
        route._advance,
        TARGETS[target],
        ROUTE_TYPES,
        {
            "WIDTH": width,
            "BLOCK": width,
            "SCRIPTS": 16,
            "COUNTS": route.NUM_COUNTS,
            "OWN": own,
            **rules,
        },
        num_warps=1,
        num_stages=1,
        aligned=set(),
    )
    found = resources(compiled)
    assert found.spilled == 0
    assert found.registers <= 128


def test_new_slots_have_no_list_and_want_the_full_vocabulary():
    state = route.new_state(num_slots=3, scripts=16, lists=4, own_tokens=64, device="cpu")
    assert {len(tensor) for tensor in state} == {3}
    assert state.lists.tolist() == state.named.tolist() == state.language.tolist() == [-1] * 3
    assert state.wanted.tolist() == [3] * 3
    assert state.counts.shape == (3, route.NUM_COUNTS, 4)
    assert state.own_ids.shape == state.own_stamps.shape == (3, 4, 64)
    assert (state.own_ids == NO_TOKEN).all()
    for idle in (state.scripts, state.seen, state.outside, state.left, state.counts):
        assert not idle.any()
    # Slots are not views of each other.
    state.lists[0] = 2
    assert state.lists.tolist() == [2, -1, -1]


def test_an_empty_batch_launches_nothing():
    """There is no GPU here: a launch would fail."""
    state = route.new_state(2, 16, 4, 0, "cpu")
    nothing = torch.empty(0, dtype=torch.int64)
    route.advance_routes(None, state, None, nothing, nothing.view(0, 4), nothing)
    assert state.lists.tolist() == [-1, -1]
