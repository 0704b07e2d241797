"""Attention over cache slots against float64, and a row's bits wherever its keys lie.

Alone: pytest tests/serving/cpu/native/test_attention.py
"""

import pytest
import torch

pytestmark = pytest.mark.heavy

SEED = 20250918
DTYPES = [torch.float32, torch.bfloat16]
CONTEXT = 700


class Case:
    """Requests whose keys lie in any order in a cache; rows that see some of them."""

    def __init__(
        self, size: int, heads: int, key_heads: int, dtype=torch.float32, cache_dtype=None
    ) -> None:
        source = torch.Generator().manual_seed(SEED)
        slots = torch.randperm(3 * CONTEXT, generator=source).view(3, CONTEXT)
        self.table = slots.to(torch.int32)
        shape = (3 * CONTEXT, key_heads, size)
        self.keys, self.values = (
            torch.randn(shape, generator=source).to(cache_dtype or dtype) for _ in range(2)
        )
        self.scale = size**-0.5
        # request, keys from the first on, bits of those behind
        self.sees = [
            *((0, 1, 0), (0, 2, 0), (1, 33, 0), (2, 300, 0), (1, 634, 0)),
            *((0, 9, 0b1), (1, 40, 0b1011), (2, 0, 0b101), (2, 257, 1 << 63 | 1), (0, 8, 0b1110)),
        ]
        self.query = torch.randn(len(self.sees), heads, size, generator=source).to(dtype)

    def visible(self, rows: list[int]) -> torch.Tensor:
        seen = [self.sees[row] for row in rows]
        return torch.tensor(
            [
                [self.table[request].data_ptr(), prefix, bits - (bits >> 63 << 64)]
                for request, prefix, bits in seen
            ]
        )

    def attend(self, engine, rows: list[int], window: int = -1) -> torch.Tensor:
        engine.reserve_keys(CONTEXT)
        return engine.attend(
            self.query[rows],
            self.keys,
            self.values,
            self.visible(rows),
            scale=self.scale,
            window=window,
        )

    def all(self, engine, window: int = -1) -> torch.Tensor:
        return self.attend(engine, list(range(len(self.sees))), window)

    def reference(self, window: int) -> torch.Tensor:
        outputs = []
        group = self.query.shape[1] // self.keys.shape[1]
        for query, (request, prefix, bits) in zip(self.query, self.sees, strict=True):
            behind = [prefix + bit for bit in range(64) if bits >> bit & 1]
            seen = [*range(prefix), *behind]
            slots = self.table[request, seen if window < 0 else seen[-window - 1 :]].long()
            keys, values = (
                cache[slots].double().repeat_interleave(group, 1)
                for cache in (self.keys, self.values)
            )
            scores = torch.einsum("hd,thd->ht", query.double(), keys) * self.scale
            outputs.append(torch.einsum("ht,thd->hd", scores.softmax(1), values).flatten())
        return torch.stack(outputs)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    rounding = 2**-8 if actual.dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=5e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (9, 3), (4, 4)])
@pytest.mark.parametrize("size", [16, 64, 80, 96, 128, 256])
def test_attention_is_float64s(engine, size, heads, key_heads, dtype):
    case = Case(size, heads, key_heads, dtype)
    got = case.all(engine)
    assert got.dtype == dtype
    assert_close(got, case.reference(-1))


@pytest.mark.parametrize("window", [0, 1, 7, 100, 1000])
def test_a_window_shows_so_many_positions_behind_the_row(engine, window):
    """Those of a tree's branch among them, not those of other branches."""
    case = Case(16, 4, 2)
    assert_close(case.all(engine, window), case.reference(window))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_cache_of_the_other_dtype(engine, dtype):
    (other,) = {*DTYPES} - {dtype}
    case = Case(80, 4, 2, dtype, other)
    assert_close(case.all(engine), case.reference(-1))


def test_a_value_of_another_size_than_its_key(engine):
    case = Case(48, 4, 2)
    case.values = case.values[..., :33].contiguous()
    assert_close(case.all(engine), case.reference(-1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [-1, 7])
@pytest.mark.parametrize("size", [16, 80])
def test_bits_of_a_row_depend_on_its_own_keys_alone(engines, size, window, dtype):
    """Alone, beside others, in a cache that lies otherwise, by any number of threads."""
    case = Case(size, 6, 2, dtype)
    whole = case.all(engines[0], window)
    for engine in engines:
        assert torch.equal(case.all(engine, window), whole)
        alone = [case.attend(engine, [row], window) for row in range(len(case.sees))]
        assert torch.equal(torch.cat(alone), whole)
    moved = torch.randperm(3 * CONTEXT, generator=torch.Generator().manual_seed(SEED + 1))
    table = moved[case.table.long()].to(torch.int32)
    keys, values = torch.empty_like(case.keys), torch.empty_like(case.values)
    keys[moved], values[moved] = case.keys, case.values
    case.table, case.keys, case.values = table, keys, values
    assert torch.equal(case.all(engines[1], window), whole)


def test_a_key_behind_the_prefix_or_as_a_bit_is_the_same_key(engine):
    """So a chain that a tree verifies gets the bits of plain decoding."""
    case = Case(64, 4, 2)
    case.sees = [(0, 41, 0), (0, 40, 0b1), (0, 38, 0b111)]
    case.query = case.query[:1].repeat(3, 1, 1)
    got = case.all(engine)
    assert torch.equal(got[1], got[0])
    assert torch.equal(got[2], got[0])


def test_one_key_far_above_the_others_is_its_value(engine):
    """Scores whose exponentials float32 cannot tell from zero."""
    case = Case(16, 1, 1)
    case.sees, case.query = [(0, 20, 0)], torch.full((1, 1, 16), 100.0)
    slot = int(case.table[0, 7])
    case.keys.fill_(-100.0)
    case.keys[slot] = 100.0
    assert torch.equal(case.all(engine)[0], case.values[slot, 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (9, 3), (26, 1)])
def test_rows_that_share_keys_have_the_bits_that_they_have_alone(engine, heads, key_heads, dtype):
    """Chains, trees, prompts and windows: up to 40 neighbours of a request, in any order."""
    choice = torch.Generator().manual_seed(SEED + heads)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=choice))

    for _ in range(12):
        case = Case(32, heads, key_heads, dtype)
        case.sees = []
        for request in range(3):
            prefix, kind = number(1, CONTEXT - 110), number(0, 3)
            for row in range(number(1, 40)):
                bits = number(0, 2**62) << 1 | 1
                same = {0: (prefix + row, 0), 1: (prefix, bits), 2: (prefix + row % 5, bits >> 50)}
                case.sees.append((request, *same[kind]))
        case.query = torch.randn(len(case.sees), heads, 32, generator=choice).to(dtype)
        for window in (-1, number(0, 90)):
            together = case.all(engine, window)
            alone = [case.attend(engine, [row], window) for row in range(len(case.sees))]
            assert torch.equal(together, torch.cat(alone))
            assert_close(together, case.reference(window))
