"""Threads that share operators: none is waited for, none comes too late to do harm, all can end.

Alone: pytest tests/serving/cpu/native/test_team.py
"""

import gc
import threading
import time

import numpy as np
import pytest
import torch

from fastmtp_sglang.serving.cpu.native import team
from fastmtp_sglang.serving.cpu.native.engine import Engine
from fastmtp_sglang.serving.cpu.native.packing import Packed
from fastmtp_sglang.serving.cpu.native.passes import PARTS, PARTS_A_ROW

SEED = 20250918


def product() -> tuple[torch.Tensor, Packed]:
    source = torch.Generator().manual_seed(SEED)
    weight = torch.randn(600, 64, generator=source)
    return torch.randn(7, 64, generator=source), Packed.of(weight)


@pytest.fixture
def new_engine():
    """Makes engines whose threads end with the test."""
    made = []

    def make(workers: int) -> Engine:
        made.append(Engine(workers))
        return made[-1]

    yield make
    for engine in made:
        engine._team.stop()


def test_many_small_operators_by_more_threads_than_cores(new_engine):
    x, packed = product()
    expected = new_engine(1).product(x, packed)
    crowded = new_engine(9)
    for _ in range(500):
        assert torch.equal(crowded.product(x, packed), expected)


def test_threads_that_slept_wake_up_again(new_engine):
    """Their eyes are open for about 0.1 ms."""
    x, packed = product()
    engine = new_engine(2)
    expected = engine.product(x, packed)
    for _ in range(3):
        deadline = time.monotonic() + 60
        while not engine._team._memory[team._SLEEPING // 8]:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert torch.equal(engine.product(x, packed), expected)


def test_nobody_waits_for_a_thread_that_does_not_run(monkeypatch):
    """The system has not let them run: their parts are claimed by the one that does."""
    x, packed = product()
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
    alone = Engine(4)
    assert torch.equal(alone.product(x, packed), Engine(1).product(x, packed))


def test_the_number_of_a_job_wraps_around(new_engine):
    x, packed = product()
    engine = new_engine(3)
    expected = engine.product(x, packed)
    memory = engine._team._memory
    for ends in (30, 32):
        # Threads that saw a former job take part in whatever comes next.
        memory[team._JOB // 8] = (1 << ends) - 20
        for _ in range(40):
            assert torch.equal(engine.product(x, packed), expected)
        assert memory[team._JOB // 8] == (1 << ends) + 20


def test_a_late_thread_finds_nothing_left_of_its_job(new_engine):
    """Its job is done and the next one, of more parts, is being written down."""
    x, packed = product()
    engine = new_engine(1)
    engine.product(x, packed)
    job, op = int(engine._team._memory[team._JOB // 8]), engine._ops[0].copy()
    assert (op[PARTS_A_ROW], op[PARTS]) == (0, len(packed.panels))
    # The next one multiplies by all panels twice.
    panels = torch.cat((packed.panels, packed.panels))
    wide = torch.zeros(len(x), len(panels) * panels[0, 0].numel())
    op[PARTS] = len(panels)
    op[3:6] = torch.tensor((wide.data_ptr(), wide.shape[1], panels.data_ptr()))
    op[7] = wide.shape[1]
    counters = engine._team._counters
    before = counters[0].copy()
    team._sweep(
        job, op.ctypes.data, 1, engine._given_at, counters.ctypes.data, int(engine._given[5]), 2
    )
    assert not wide.any()
    assert np.array_equal(counters[0], before)


def test_stopping_ends_the_threads():
    before = threading.active_count()
    engine = Engine(4)
    x, packed = product()
    engine.product(x, packed)
    assert threading.active_count() == before + 3
    engine._team.stop()
    assert threading.active_count() == before


def test_a_teams_threads_end_with_it():
    """They had looked at its memory for ever, which others were given."""
    before = threading.active_count()
    engine = Engine(4)
    x, packed = product()
    engine.product(x, packed)
    threads = engine._team._threads
    del engine
    gc.collect()
    for thread in threads:
        thread.join(timeout=60)
    assert threading.active_count() == before
