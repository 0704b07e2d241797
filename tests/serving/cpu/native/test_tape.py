"""A tape computes what its operators computed, bit by bit, and notes nothing that it cannot repeat.

Alone: pytest tests/serving/cpu/native/test_tape.py
"""

import functools

import pytest
import torch

from fastmtp_sglang.serving.cpu.native.packing import Packed
from fastmtp_sglang.serving.cpu.native.passes import SWEEP
from fastmtp_sglang.serving.cpu.native.tape import NotRecordable, Recording, Tape, _places

SEED = 20250918
DTYPES = [torch.float32, torch.bfloat16]
WIDTH, HEADS, KEY_HEADS, SIZE, ENTRIES, SLOTS = 48, 3, 1, 16, 30, 400


class Block:
    """One transformer layer of an engine's operators, with its cache."""

    def __init__(self, engine, dtype: torch.dtype) -> None:
        source = torch.Generator().manual_seed(SEED)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=source) / shape[-1] ** 0.5

        self.engine = engine
        self.table = random(ENTRIES, WIDTH).to(dtype)
        self.norms = 1 + random(3, WIDTH)
        self.qkv = Packed.of(random((HEADS + 2 * KEY_HEADS) * SIZE, WIDTH).to(dtype))
        self.bias = random((HEADS + 2 * KEY_HEADS) * SIZE)
        self.out = Packed.of(random(WIDTH, HEADS * SIZE).to(dtype))
        self.up = Packed.of(random(2 * 72, WIDTH).to(dtype))
        self.down = Packed.of(random(WIDTH, 72).to(dtype))
        angle = 10 * torch.rand(SLOTS, SIZE // 2, generator=source)
        self.angles = torch.cat((angle.cos(), angle.sin()), 1)
        self.caches = [torch.zeros(SLOTS, KEY_HEADS, SIZE, dtype=dtype) for _ in range(2)]
        self.request = torch.arange(SLOTS, dtype=torch.int32)
        engine.reserve_keys(SLOTS + 64)

    def rows(self, count: int) -> dict[str, torch.Tensor]:
        """What a pass over the first positions of one request is given."""
        positions = torch.arange(count)
        seen = torch.zeros(count, 3, dtype=torch.int64)
        seen[:, 0], seen[:, 1] = self.request.data_ptr(), positions + 1
        ids = torch.randint(ENTRIES, (count,), generator=torch.Generator().manual_seed(count))
        return {"ids": ids, "positions": positions, "slots": positions.clone(), "visible": seen}

    def __call__(self, ids, positions, slots, visible) -> torch.Tensor:
        engine, kept = self.engine, self.engine.embed(ids, self.table)
        x = engine.norm(kept, self.norms[0], 1e-6)
        projected = engine.product(x, self.qkv, self.bias)
        q, k, v = projected.split((HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE), 1)
        query, key = (t.unflatten(1, (-1, SIZE)) for t in (q, k))
        engine.rotate(positions, query, key, self.angles)
        engine.keep(k, v, *self.caches, slots)
        mixed = engine.attend(query, *self.caches, visible, scale=0.25)
        x = engine.norm(engine.product(mixed, self.out), self.norms[1], 1e-6, kept)
        x = engine.product(engine.gate(engine.product(x, self.up), "silu"), self.down)
        return engine.norm(x, self.norms[2], 1e-6, kept)

    def tape(self, count: int = 3) -> Tape:
        of_rows = self.rows(count)
        with Recording(self.engine, [], **of_rows) as recording:
            output = self(**of_rows)
        return recording.tape(output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("recorded", [2, 3, SWEEP + 9])
def test_a_sweep_equals_the_operators_one_by_one(engine, recorded, dtype):
    """Whatever number of rows was recorded, also more than one sweep holds."""
    block = Block(engine, dtype)
    tape = block.tape(recorded)
    for count in (1, 3, 7, SWEEP, SWEEP + 44):
        of_rows = block.rows(count)
        passes = []
        for compute in (block, functools.partial(tape.sweep, count)):
            for cache in block.caches:
                cache.zero_()
            passes.append((compute(**of_rows), *(cache.clone() for cache in block.caches)))
        for one_by_one, swept in zip(*passes, strict=True):
            assert torch.equal(swept, one_by_one)


def test_results_stay_after_the_next_sweep(engine):
    block = Block(engine, torch.float32)
    tape = block.tape()
    first = tape.sweep(5, **block.rows(5))
    before = first.clone()
    tape.sweep(7, **block.rows(7))
    assert torch.equal(first, before)


def test_inputs_are_those_of_the_sweep(engine):
    """A head starts from hidden states; what was recorded from others is forgotten."""
    first, second = (
        torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows)) for rows in (2, 9)
    )
    weight = torch.ones(WIDTH)

    def compute(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return engine.join(engine.norm(x, weight, 1e-6), x, positions)

    positions = torch.tensor([0, 3])
    with Recording(engine, [first], positions=positions) as recording:
        output = compute(first, positions)
    tape = recording.tape(output)
    later = torch.arange(9)
    got = tape.sweep(9, [second], positions=later)
    assert torch.equal(got, compute(second, later))


def test_other_work_is_not_recordable(engine):
    x, weight = torch.ones(2, 8), torch.ones(8)
    with pytest.raises(NotRecordable, match=r"aten\.add"), Recording(engine, [x]):
        engine.norm(x, weight, 1e-6) + x
    # The engine is free again.
    assert engine.recording is None
    assert engine.norm(x, weight, 1e-6).shape == (2, 8)


def test_rows_that_are_not_those_of_the_pass_are_not_recordable(engine):
    x, positions, others = torch.ones(2, 8), torch.tensor([0, 1]), torch.tensor([0, 1])
    with (
        pytest.raises(NotRecordable, match="positions"),
        Recording(engine, [x], positions=positions),
    ):
        engine.join(x, x, others)


def test_operators_over_other_rows_are_not_recordable(engine):
    """As SGLang normalizes heads: a row of a projection becomes as many rows."""
    x, weight = torch.ones(2, 8), torch.ones(4)
    with pytest.raises(NotRecordable, match="4 rows in a pass of 2"), Recording(engine, [x]):
        engine.norm(x.reshape(-1, 4), weight, 1e-6)


@pytest.mark.parametrize("name", ["an input", "memory of its own", "a part of a result"])
def test_a_result_that_no_operator_made_is_not_recordable(engine, name):
    x, weight = torch.ones(2, 8), torch.ones(8)
    with Recording(engine, [x]) as recording:
        made = engine.norm(x, weight, 1e-6)
    output = {
        "an input": x,
        "memory of its own": torch.ones(2, 8),
        "a part of a result": made[:, 4:],
    }
    with pytest.raises(NotRecordable, match="result"):
        recording.tape(output[name])


def test_buffers_that_are_alive_together_never_overlap():
    """Random lives from SEED; each operator names up to three buffers."""
    source = torch.Generator().manual_seed(SEED)
    for _ in range(200):
        count = int(torch.randint(1, 12, (), generator=source))
        owner = torch.randint(-1, count, (20, 3), generator=source).numpy()
        row_bytes = torch.randint(1, 100, (count,), generator=source).mul(2).tolist()
        outside = {0}
        places, size = _places(owner, row_bytes, outside)
        assert set(places) == {*owner.flatten().tolist()} - {-1} - outside
        lives = {
            number: [step for step, fields in enumerate(owner) if number in fields]
            for number in places
        }
        for one in places:
            assert 0 <= places[one] <= size - row_bytes[one]
            for other in places:
                if (
                    one < other
                    and lives[one][0] <= lives[other][-1]
                    and (lives[other][0] <= lives[one][-1])
                ):
                    apart = (
                        places[one] + row_bytes[one] <= places[other]
                        or places[other] + row_bytes[other] <= places[one]
                    )
                    assert apart


def test_an_arena_is_smaller_than_all_its_buffers(engine):
    """Layers use the memory of the layers before."""
    owner = [[i, i + 1] for i in range(20)]
    _, size = _places(torch.tensor(owner).numpy(), [64] * 21, set())
    assert size == 128
