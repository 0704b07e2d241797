"""Row-wise operators against float64, in both dtypes, and each row by itself.

Alone: pytest tests/serving/cpu/native/test_rows.py
"""

import pytest
import torch

from fastmtp_sglang.serving.cpu.native.rows import GATES

SEED = 20250918
DTYPES = [torch.float32, torch.bfloat16]
WIDTHS = [1, 7, 33, 576]
ROWS = 9


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED + seed)).to(dtype)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Float32 arithmetic, rounded once to bfloat16 where that is the dtype."""
    rounding = 2**-8 if actual.dtype == torch.bfloat16 else 2e-6
    torch.testing.assert_close(actual.double(), expected, rtol=rounding, atol=2e-6)


def normed(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_norm(engine, width, dtype):
    x, weight = random(ROWS, width, seed=0, dtype=dtype), random(width, seed=1)
    assert_close(engine.norm(x, weight, 1e-5), normed(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_after_an_addition(engine, dtype):
    """The norm is that of the unrounded sum; what is kept is rounded."""
    x, kept = (random(ROWS, 33, seed=seed, dtype=dtype) for seed in (0, 1))
    weight, total = random(33, seed=2), x.double() + kept.double()
    got = engine.norm(x, weight, 1e-6, kept)
    assert_close(got, normed(total, weight, 1e-6))
    assert_close(kept, total)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 80])
def test_norm_of_the_heads_of_a_projection(engine, size, dtype):
    """As Qwen3 has it: query heads that lie in a wider row."""
    projected = random(ROWS, 7 * size, seed=0, dtype=dtype)
    heads, weight = projected[:, : 4 * size].unflatten(1, (4, size)), random(size, seed=1)
    got = engine.norm(heads, weight, 1e-6)
    assert got.shape == heads.shape
    assert_close(got, normed(heads, weight, 1e-6))


def test_the_norm_of_zeros_is_zeros(engine):
    assert not engine.norm(torch.zeros(2, 8), torch.ones(8), 1e-6).any()


def activation(x: torch.Tensor, name: str) -> torch.Tensor:
    if name == "silu":
        return torch.nn.functional.silu(x)
    return torch.nn.functional.gelu(x, approximate=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("width", WIDTHS)
def test_gate(engine, width, name, dtype):
    x = 4 * random(ROWS, 2 * width, seed=3, dtype=dtype)
    left, right = x.double().chunk(2, -1)
    assert_close(engine.gate(x, name), activation(left, name) * right)


@pytest.mark.parametrize("name", GATES)
def test_a_gate_at_the_ends_of_float32(engine, name):
    """Where exp reaches neither zero nor infinity; 0 * inf would be NaN."""
    values = torch.tensor([-1e30, -200.0, -90.0, -0.0, 0.0, 90.0, 200.0, 1e30])
    got = engine.gate(torch.cat((values, torch.ones(8))).view(1, 16), name)
    expected = activation(values.double(), name).view(1, 8)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("part", [64, 32], ids=["whole heads", "half of each head"])
def test_rotation(engine, part, dtype):
    angle = 20 * torch.rand(50, part // 2, generator=torch.Generator().manual_seed(SEED))
    positions = torch.tensor([0, 49, 7, 7, 31])
    projected = random(5, 10 * 64, seed=4, dtype=dtype)
    before = projected.clone()
    query, key, value = projected.unflatten(1, (10, 64)).split((6, 2, 2), 1)
    engine.rotate(positions, query, key, torch.cat((angle.cos(), angle.sin()), 1))
    turned = before.unflatten(1, (10, 64)).double()
    low, high = turned[..., : part // 2].clone(), turned[..., part // 2 : part].clone()
    cos, sin = (f(angle[positions]).double().unsqueeze(1) for f in (torch.cos, torch.sin))
    turned[..., : part // 2] = low * cos - high * sin
    turned[..., part // 2 : part] = high * cos + low * sin
    assert_close(torch.cat((query, key), 1), turned[:, :8])
    assert torch.equal(value, before.unflatten(1, (10, 64))[:, 8:])


@pytest.mark.parametrize("cache_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_keys_and_values_go_to_their_slots(engine, dtype, cache_dtype):
    projected = random(4, 3 * 48, seed=5, dtype=dtype)
    _, key, value = projected.split(48, 1)
    keys, values = (torch.zeros(9, 3, 16, dtype=cache_dtype) for _ in range(2))
    slots = torch.tensor([8, 1, 2, 5])
    engine.keep(key, value, keys, values, slots)
    for cache, written in ((keys, key), (values, value)):
        assert torch.equal(cache[slots].flatten(1), written.to(cache_dtype))
        assert not cache[[0, 3, 4, 6, 7]].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_join(engine, dtype):
    first, second = (random(3, 7, seed=seed, dtype=dtype) for seed in (6, 7))
    got = engine.join(first, second, torch.tensor([5, 0, 1]))
    second[1] = 0
    assert torch.equal(got, torch.cat((first, second), 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_look_up(engine, dtype):
    table, ids = random(20, 33, seed=8, dtype=dtype), torch.tensor([19, 0, 7, 7])
    assert torch.equal(engine.embed(ids, table), table[ids])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_look_up_and_multiply(engine, dtype):
    """As torch multiplies by a number: in float32, rounded once."""
    table, ids = random(20, 640, seed=8, dtype=dtype), torch.tensor([19, 0, 7, 7])
    assert torch.equal(engine.embed(ids, table, 640**0.5), table[ids] * 640**0.5)


def test_widening_is_exact(engine):
    x = random(5, 33, seed=9, dtype=torch.bfloat16)
    assert torch.equal(engine.widen(x), x.float())


def test_rounding_to_bfloat16_is_torchs(engine):
    """Ties to even, overflow, infinities and NaN: a product with 1 rounds its input."""
    bits = torch.randint(
        -(2**31), 2**31 - 1, (4096,), generator=torch.Generator().manual_seed(SEED)
    )
    ties = torch.arange(0x3F808000, 0x3F848000, 0x8000)
    special = torch.tensor([0x7F7FFFFF, 0x7F800000, 0x7FC00000, 1, 0x80000000 - 2**32])
    values = torch.cat((bits, ties, special)).to(torch.int32).view(torch.float32).view(-1, 1)
    keys = torch.zeros(len(values), 1, 1, dtype=torch.bfloat16)
    engine.keep(values, values, keys, keys.clone(), torch.arange(len(values)))
    torch.testing.assert_close(keys.view(-1, 1), values.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_depends_on_no_other_row_and_no_thread(engines, dtype):
    x, weight = random(40, 66, seed=10, dtype=dtype), random(66, seed=11)
    for compute in (
        lambda engine, rows: engine.norm(rows, weight, 1e-6),
        *(lambda engine, rows, name=name: engine.gate(rows, name) for name in GATES),
    ):
        whole = compute(engines[0], x)
        for engine in engines:
            assert torch.equal(compute(engine, x), whole)
            assert torch.equal(torch.cat([compute(engine, row) for row in x.split(1)]), whole)
