"""Ranks that measure different times choose the same shapes.

Alone: pytest tests/serving/adaptive/test_clock.py
"""

import time
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing

from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.serving.adaptive import clock
from fastmtp_sglang.serving.adaptive.adaptive_shapes import AdaptiveShapes
from fastmtp_sglang.serving.adaptive.shapes import candidate_shapes

STEPS = 300


def test_one_rank_has_its_own():
    assert clock.clock_of(SimpleNamespace(world_size=1)) is time.perf_counter


def chosen(rank: int, agree: bool) -> list[TreeShape]:
    """Shapes of some steps, of which each draft is accepted; drafts cost one rank nothing."""
    seconds = [0.0]
    own = SimpleNamespace(perf_counter=lambda: seconds[0])
    clock.time = own
    group = SimpleNamespace(world_size=2, ranks=[0, 1], cpu_group=None)
    tell = clock.clock_of(group) if agree else own.perf_counter
    policy = AdaptiveShapes(candidate_shapes(TreeShape.of(3)), tell)
    shapes = []
    for _ in range(STEPS):
        shape = policy.shape_for_batch(2)
        shapes.append(shape)
        seconds[0] += 1.0 + (0.0, 2.0)[rank] * shape.num_steps
        policy.learn([("a", shape.num_steps), ("b", shape.num_steps)])
    return shapes


def run(rank: int, store: str, results) -> None:
    torch.distributed.init_process_group(
        "gloo", f"file://{store}", timedelta(seconds=120), world_size=2, rank=rank
    )
    results.put((rank, chosen(rank, agree=True)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.heavy
def test_ranks_agree(tmp_path, monkeypatch, pytestconfig):
    # Where the other processes find this module.
    monkeypatch.syspath_prepend(pytestconfig.rootpath)
    monkeypatch.setattr(clock, "time", clock.time)
    results = torch.multiprocessing.get_context("spawn").SimpleQueue()
    torch.multiprocessing.spawn(run, (str(tmp_path / "store"), results), nprocs=2)
    first, second = (shapes for _, shapes in sorted([results.get(), results.get()]))
    assert first == second
    # Alone they would not: drafts are free to one, and cost the other more than they bring.
    assert first[-1].num_steps == 3
    assert chosen(1, agree=False)[-1].num_steps == 0
