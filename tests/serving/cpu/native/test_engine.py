"""Operators as functions of tensors: their scratch memory, and what a recording is told.

The operators themselves are tested by their own files.
Alone: pytest tests/serving/cpu/native/test_engine.py
"""

import struct

import pytest
import torch

from fastmtp_sglang.serving.cpu.native import engine as module
from fastmtp_sglang.serving.cpu.native.packing import Packed
from fastmtp_sglang.serving.cpu.native.passes import (
    PARTS,
    PARTS_A_ROW,
    SCRATCH,
    SCRATCH_BYTES,
    SWEEP,
)


class Recording:
    """Notes what it is told, as `tape.Recording` does."""

    def __init__(self) -> None:
        self.noted, self.owned = [], []

    def note(self, op, rows, of_rows) -> None:
        self.noted.append((op.copy(), rows, set(of_rows)))

    def own(self, made) -> None:
        self.owned.append(made)


@pytest.fixture
def recording(engine):
    engine.recording = Recording()
    yield engine.recording
    engine.recording = None


def test_scratch_memory_grows_for_every_worker(engine):
    """What is there stays: a pass holds its address."""
    before, size = engine._given[SCRATCH], int(engine._given[SCRATCH_BYTES])
    engine.reserve(size - 100)
    assert engine._given[SCRATCH] == before
    engine.reserve(size + 1)
    grown = int(engine._given[SCRATCH_BYTES])
    assert (grown > size, grown % 64) == (True, 0)
    assert len(engine._scratch) == grown * engine._team.workers
    assert engine._given[SCRATCH] == engine._scratch.data_ptr()


def test_wide_rows_get_the_scratch_memory_they_need(engine):
    """Wider than any model's: two float32 rows of it are more than there is from the start."""
    width = int(engine._given[SCRATCH_BYTES]) // 4
    x = torch.ones(2, width)
    assert torch.equal(engine.norm(x, torch.ones(width), 0.0, torch.zeros(2, width)), x)


def test_a_product_is_noted_once_however_many_rows_it_has(engine, recording):
    """A tape is swept in turns of SWEEP rows."""
    x, packed = torch.ones(2 * SWEEP + 3, 4), Packed.of(torch.ones(5, 4))
    out = engine.product(x, packed)
    assert (out == 4).all()
    ((op, rows, of_rows),) = recording.noted
    assert (rows, of_rows) == (SWEEP, set())
    assert (op[PARTS_A_ROW], op[PARTS]) == (0, len(packed.panels))
    assert [made.data_ptr() for made in recording.owned] == [out.data_ptr()]
    assert engine.recording is recording


def test_no_rows_are_noted_and_not_computed(engine, recording):
    out = engine.gate(torch.empty(0, 8), "silu")
    assert out.shape == (0, 4)
    assert [rows for _, rows, _ in recording.noted] == [0]


def test_what_differs_from_pass_to_pass_is_told_by_name(engine, recording):
    engine.embed(torch.tensor([1, 0]), torch.eye(3))
    engine.join(torch.ones(2, 4), torch.ones(2, 4), torch.tensor([0, 1]))
    assert [of_rows for _, _, of_rows in recording.noted] == [{"ids"}, {"positions"}]


@pytest.mark.parametrize("value", [1e-5, 0.0, 0.125, -3.0])
def test_numbers_among_the_fields_are_no_addresses(value):
    bits = module._bits(value)
    assert bits < 0
    (read,) = struct.unpack("<f", struct.pack("<I", bits % 2**32))
    assert read == torch.tensor(value).item()


def test_rows_are_copied_only_where_they_do_not_lie_in_a_line():
    wide = torch.zeros(4, 3, 10)
    assert module._by_rows(wide[0, :, 2:5], 3).data_ptr() == wide[0, :, 2:5].data_ptr()
    assert module._by_rows(wide, 10).data_ptr() == wide.data_ptr()
    assert module._by_rows(wide[0, :, ::2], 5).stride() == (5, 1)


def test_columns_that_lie_apart_are_those_that_are_computed(engine):
    wide = torch.arange(24.0).view(2, 12)
    every_third, packed = wide[:, ::3], Packed.of(torch.eye(4))
    assert torch.equal(engine.product(every_third, packed), every_third)
