"""SGLang's small layers by native operators: what SGLang's reference computes, or its own code.

Alone: pytest tests/serving/cpu/test_fused.py
"""

from collections.abc import Callable

import pytest
import torch
from sglang.kernels import fused_op
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.layers.activation import GeluAndMul, SiluAndMul
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm, RMSNorm
from sglang.srt.layers.rotary_embedding import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.rope_variant import Llama3RotaryEmbedding
from sglang.srt.models import utils as models_utils

from fastmtp_sglang.serving.cpu import fused

SEED = 20250918
DTYPES = [torch.float32, torch.bfloat16]
WIDTH, HEADS, KEY_HEADS, SIZE = 96, 6, 2, 64
CONTEXT = 4096


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED + seed)).to(dtype)


def with_weight(norm: torch.nn.Module, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    norm.weight.data = random(WIDTH, seed=1, dtype=dtype)
    return norm


NORMS = {
    "RMSNorm": lambda: RMSNorm(WIDTH, eps=1e-5),
    "GemmaRMSNorm": lambda: GemmaRMSNorm(WIDTH, eps=1e-5),
    "Gemma3RMSNorm": lambda: Gemma3RMSNorm(WIDTH, eps=1e-5),
}
GATES = {
    "SiluAndMul": SiluAndMul,
    "GeluAndMul": lambda: GeluAndMul(approximate="tanh"),
    "GeluAndMul, exact": lambda: GeluAndMul(approximate="none"),
}


def rope(neox: bool = True, part: int = SIZE) -> RotaryEmbedding:
    return RotaryEmbedding(SIZE, part, CONTEXT, 10000, neox, torch.float32)


def llama3_rope() -> Llama3RotaryEmbedding:
    return Llama3RotaryEmbedding(
        SIZE, SIZE, CONTEXT, 10000, True, torch.float32, 8.0, 1.0, 4.0, 1024
    )


ROPES = {
    "RotaryEmbedding": rope,
    "RotaryEmbedding, half": lambda: rope(part=SIZE // 2),
    "Llama3RotaryEmbedding": llama3_rope,
}


@pytest.fixture
def forwards(monkeypatch) -> dict[type, Callable]:
    """What `register` offers, by layer."""
    registry: dict[str, dict[type, Callable]] = {}
    monkeypatch.setattr(BaseFusedOp, "_oot_forward_registry", registry)
    # Set anew below.
    monkeypatch.setattr(models_utils, "_reshape_for_qk_norm", models_utils._reshape_for_qk_norm)
    fused.register("here")
    return registry["here"]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    # SGLang rounds to bfloat16 once or twice where an operator does so once.
    near = 1e-5 if actual.dtype == torch.float32 else 2**-7
    torch.testing.assert_close(actual, expected, rtol=near, atol=near)


def test_every_layer_is_compared_below(forwards):
    made = {type(make()) for cases in (NORMS, GATES, ROPES) for make in cases.values()}
    assert set(forwards) == made


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NORMS)
@torch.no_grad()
def test_norms(forwards, name, dtype, weight_dtype):
    op = with_weight(NORMS[name](), weight_dtype)
    x, residual = (random(5, WIDTH, seed=seed, dtype=dtype) for seed in (2, 3))
    forward = forwards[type(op)]
    assert_close(forward(op, x), op.forward_native(x.clone()).to(dtype))
    kept = residual.clone()
    for actual, expected in zip(
        forward(op, x, kept), op.forward_native(x.clone(), residual.clone()), strict=True
    ):
        assert_close(actual, expected.to(dtype))
    # In place, as SGLang's kernels do it.
    assert not torch.equal(kept, residual)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", GATES)
def test_gates(forwards, name, dtype):
    op, x = GATES[name](), 3 * random(5, 2 * WIDTH, seed=4, dtype=dtype)
    assert_close(forwards[type(op)](op, x), op.forward_native(x))


def query_and_key(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two parts of one projection."""
    projected = random(8, (HEADS + 2 * KEY_HEADS) * SIZE, seed=5, dtype=dtype)
    query, key, _ = projected.split([HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE], dim=-1)
    return query, key


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROPES)
def test_rotary_positions(forwards, name, dtype):
    op = ROPES[name]()
    positions = torch.tensor([0, 1, 7, 7, 1000, 2, CONTEXT - 1, 30])
    expected = op.forward_native(positions, *(t.clone() for t in query_and_key(dtype)))
    query, key = query_and_key(dtype)
    got = forwards[type(op)](op, positions, query, key)
    for actual, theirs in zip(got, expected, strict=True):
        assert_close(actual, theirs)
    assert got[0].data_ptr() == query.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROPES)
def test_rotary_positions_of_separate_heads(forwards, name, dtype):
    """As Gemma 3 has them after the norms of its heads."""
    op, positions = ROPES[name](), torch.arange(8)
    flat = forwards[type(op)](op, positions, *(t.clone() for t in query_and_key(dtype)))
    heads = [t.clone().unflatten(1, (-1, SIZE)) for t in query_and_key(dtype)]
    for actual, expected in zip(forwards[type(op)](op, positions, *heads), flat, strict=True):
        assert torch.equal(actual.flatten(1), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.no_grad()
def test_norms_of_heads_where_they_lie(forwards, monkeypatch, dtype):
    """As Qwen3 has them; the bits are those of heads that SGLang has copied side by side."""
    monkeypatch.setattr(fused_op, "_oot_dispatch_key", lambda: "here")
    norms = [RMSNorm(SIZE, eps=1e-6).to(dtype) for _ in range(2)]
    for seed, norm in enumerate(norms):
        norm.weight.data = random(SIZE, seed=12 + seed, dtype=dtype)
    assert models_utils._reshape_for_qk_norm is fused.heads
    got = models_utils.apply_qk_norm(*query_and_key(dtype), *norms, SIZE)
    copied = lambda x, size: x.reshape(-1, size)  # noqa: E731
    monkeypatch.setattr(models_utils, "_reshape_for_qk_norm", copied)
    expected = models_utils.apply_qk_norm(*query_and_key(dtype), *norms, SIZE)
    for actual, theirs in zip(got, expected, strict=True):
        assert torch.equal(actual, theirs)


class ForwardNative(Exception):
    """SGLang's reference was asked."""


@pytest.fixture
def asked(monkeypatch):
    """SGLang's references say that they were asked, and by which arguments."""

    def forward_native(*args):
        raise ForwardNative

    for layer in (RMSNorm, GemmaRMSNorm, Gemma3RMSNorm, SiluAndMul, GeluAndMul, RotaryEmbedding):
        monkeypatch.setattr(layer, "forward_native", forward_native)


X = torch.ones(3, WIDTH)
HALF = X.to(torch.float16)
# The columns lie apart.
APART = torch.ones(3, 2 * WIDTH)[:, ::2]
UNKNOWN_NORMS = {
    "a cast before the product": (RMSNorm(WIDTH, cast_x_before_out_mul=True), X),
    "a float32 residual": (RMSNorm(WIDTH, fp32_residual=True), X, X),
    "another dtype of the result": (RMSNorm(WIDTH, override_orig_dtype=torch.float16), X),
    "a variance over a part": (RMSNorm(WIDTH, var_hidden_size=8), X),
    "a further addition": (RMSNorm(WIDTH), X, X, X),
    "Gemma's further addition": (GemmaRMSNorm(WIDTH), X, X, X),
    "float16": (RMSNorm(WIDTH), HALF),
    "Gemma's float16": (Gemma3RMSNorm(WIDTH), HALF),
    "columns apart": (RMSNorm(WIDTH), APART),
    "a residual of another dtype": (RMSNorm(WIDTH), X, X.bfloat16()),
    "a residual that is not contiguous": (RMSNorm(WIDTH), X, APART),
}


@pytest.mark.parametrize("name", UNKNOWN_NORMS)
def test_norms_that_the_operator_does_not_know_are_sglangs(forwards, asked, name):
    op, *arguments = UNKNOWN_NORMS[name]
    with pytest.raises(ForwardNative):
        forwards[type(op)](op, *arguments)


@pytest.mark.parametrize("x", [HALF, APART], ids=["float16", "columns apart"])
@pytest.mark.parametrize("name", GATES)
def test_gates_that_the_operator_does_not_know_are_sglangs(forwards, asked, name, x):
    op = GATES[name]()
    with pytest.raises(ForwardNative):
        forwards[type(op)](op, x)


@pytest.mark.parametrize(
    "change",
    [
        {"op": rope(neox=False)},
        {"positions": torch.zeros(3, 8, dtype=torch.int64)},
        {"positions": torch.arange(8, dtype=torch.int32)},
        {"offsets": torch.zeros(8, dtype=torch.int64)},
        {"query": torch.ones(8, HEADS * SIZE, dtype=torch.bfloat16)},
        {"query": torch.ones(8, HEADS, 2 * SIZE)[:, :, :SIZE]},
        {"query": torch.ones(8, 2 * HEADS * SIZE)[:, ::2]},
    ],
    ids=[
        *("interleaved", "three positions", "int32", "offsets", "dtypes"),
        *("heads apart", "columns apart"),
    ],
)
def test_rotations_that_the_operator_does_not_know_are_sglangs(forwards, asked, change):
    arguments = {
        "op": rope(),
        "positions": torch.arange(8),
        "query": torch.ones(8, HEADS * SIZE),
        "key": torch.ones(8, KEY_HEADS * SIZE),
    } | change
    with pytest.raises(ForwardNative):
        forwards[RotaryEmbedding](**arguments)


@pytest.mark.parametrize("name", NORMS)
@torch.no_grad()
def test_copies_of_weights_are_forgotten_when_weights_change(forwards, name):
    model = torch.nn.Module()
    model.norm = with_weight(NORMS[name](), torch.bfloat16)
    x, forward = random(5, WIDTH, seed=6), forwards[type(model.norm)]
    before = forward(model.norm, x)
    model.norm.weight.data = random(WIDTH, seed=7, dtype=torch.bfloat16)
    assert torch.equal(forward(model.norm, x), before)
    fused.forget_copies(model)
    assert_close(forward(model.norm, x), model.norm.forward_native(x).float())


def test_the_draft_product_is_exact_to_float32():
    rows, hidden = random(33, WIDTH, seed=8, dtype=torch.bfloat16), random(3, WIDTH, seed=9)
    got = fused.draft_product(rows)(hidden)
    torch.testing.assert_close(got.double(), hidden.double() @ rows.double().T, rtol=0, atol=1e-4)
    assert got.dtype == torch.float32


def test_join_is_that_of_the_head():
    from fastmtp_sglang.serving.drafting import head_model

    hidden, tokens = random(4, WIDTH, seed=10), random(4, WIDTH, seed=11)
    positions = torch.tensor([3, 0, 1, 0])
    assert torch.equal(
        fused.join(hidden, tokens, positions), head_model.join(hidden, tokens, positions)
    )
