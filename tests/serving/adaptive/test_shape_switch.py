"""States of all shapes are built once and exchanged, top-k and rows with them.

Alone: pytest tests/serving/adaptive/test_shape_switch.py
"""

from types import SimpleNamespace

import pytest
from sglang.srt.mem_cache import allocation_sizing

from fastmtp_sglang.contract.tree_shape import PLAIN, TreeShape
from fastmtp_sglang.serving.adaptive import shape_switch
from fastmtp_sglang.serving.adaptive.shape_switch import ShapeSwitch, reserve_for_the_largest

CHAIN, TREE, LARGEST = (TreeShape.parse(text) for text in ("3x1", "3x8x8", "3x8x16"))
SHAPES = (PLAIN, CHAIN, TREE, LARGEST)


def shape_of(owner):
    return (owner.speculative_num_steps, owner.topk, owner.speculative_num_draft_tokens)


class DraftWorker:
    def __init__(self):
        self.speculative_num_steps, self.topk, self.speculative_num_draft_tokens = 3, 8, 16
        self.chain_buffers = None

    def _rebuild_topk1_chain_buffers(self):
        """SGLang's asserts that K and rows fit together, of chains."""
        if self.topk == 1:
            assert self.speculative_num_draft_tokens == self.speculative_num_steps + 1
        self.chain_buffers = shape_of(self)


class Worker:
    """SGLang's worker, as far as states go: `topk` is not part of them."""

    def __init__(self, spec):
        self.draft_worker, self.spec = DraftWorker(), spec
        self.speculative_num_steps, self.topk, self.speculative_num_draft_tokens = 3, 8, 16

    def build_adaptive_runtime_state(
        self, speculative_num_steps, speculative_num_draft_tokens, cuda_graph_bs=None
    ):
        self.draft_worker._rebuild_topk1_chain_buffers()
        asked = speculative_num_steps, self.spec["speculative_eagle_topk"]
        state = SimpleNamespace(
            speculative_num_steps=speculative_num_steps,
            speculative_num_draft_tokens=speculative_num_draft_tokens,
            built=(*asked, speculative_num_draft_tokens),
            cuda_graph_bs=cuda_graph_bs,
        )
        self.draft_worker._rebuild_topk1_chain_buffers()
        return state

    def apply_runtime_state(self, state):
        if self.speculative_num_steps == state.speculative_num_steps:
            return
        for owner in (self, self.draft_worker):
            owner.speculative_num_steps = state.speculative_num_steps
            owner.speculative_num_draft_tokens = state.speculative_num_draft_tokens
        self.draft_worker._rebuild_topk1_chain_buffers()
        self.applied = state


@pytest.fixture
def worker(monkeypatch):
    spec: dict[str, int] = {}
    context = SimpleNamespace(override=lambda source, **leaves: spec.update(leaves))
    monkeypatch.setattr(shape_switch, "get_context", lambda: context)
    return Worker(spec)


def test_every_shape_has_its_state(worker):
    chosen = iter([CHAIN, CHAIN, TREE, PLAIN, LARGEST, CHAIN])
    policy = SimpleNamespace(shapes=SHAPES, shape_for_batch=lambda batch_size: next(chosen))
    switch = ShapeSwitch(worker, policy)
    switch.register(SimpleNamespace(built=(3, 8, 16), **vars_of(LARGEST)))
    switch.init_states(cuda_graph_bs=[1, 2])
    assert shape_of(worker) == shape_of(worker.draft_worker) == (3, 8, 16)
    assert worker.spec["speculative_eagle_topk"] == 8
    for shape in (CHAIN, CHAIN, TREE, PLAIN, LARGEST, CHAIN):
        switch.activate_step_by_batch(4)
        wanted = shape.num_steps, shape.top_k, shape.num_rows
        assert worker.applied.built == wanted
        assert shape_of(worker) == shape_of(worker.draft_worker) == wanted
        assert worker.draft_worker.chain_buffers == wanted
        assert worker.spec["speculative_eagle_topk"] == shape.top_k
        if shape != LARGEST:
            assert worker.applied.cuda_graph_bs == [1, 2]


def vars_of(shape):
    return {
        "speculative_num_steps": shape.num_steps,
        "speculative_num_draft_tokens": shape.num_rows,
    }


@pytest.mark.parametrize(("page_size", "slots"), [(1, 24), (16, 8 * 2 * 16)])
def test_a_step_has_slots_for_the_largest_shape_whatever_is_in_use(monkeypatch, page_size, slots):
    spec = SimpleNamespace(
        speculative_algorithm="EAGLE", speculative_num_steps=3, speculative_eagle_topk=8
    )
    stock = allocation_sizing.get_alloc_len_per_decode
    monkeypatch.setattr(allocation_sizing, "get_alloc_len_per_decode", stock)
    monkeypatch.setattr(allocation_sizing, "get_spec", lambda: spec)
    monkeypatch.setattr(allocation_sizing, "max_speculative_num_draft_tokens", lambda: 16)
    monkeypatch.setattr(allocation_sizing, "get_alloc_page_size", lambda: page_size)
    reserve_for_the_largest()
    spec.speculative_num_steps, spec.speculative_eagle_topk = 1, 1
    assert stock() < slots
    assert allocation_sizing.get_alloc_reserve_per_decode() == 2 * slots
