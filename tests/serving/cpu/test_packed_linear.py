"""Linear layers in panels: exact rows, one copy of a shared lm_head, weights that are loaded again.

The product itself is tested in native/test_product.py.

Alone: pytest tests/serving/cpu/test_packed_linear.py
"""

import gc

import pytest
import torch
from sglang.srt.layers.linear import LinearBase, ReplicatedLinear
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding

from fastmtp_sglang.serving.cpu.packed_linear import (
    NativeEmbeddingMethod,
    PackedLinearMethod,
    PackedLMHeadMethod,
    pack_model,
)

SEED = 20250918
DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int, seed: int = SEED) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs: int, outputs: int, *, seed: int = SEED, **kwargs) -> ReplicatedLinear:
    layer = ReplicatedLinear(inputs, outputs, **kwargs)
    for parameter in layer.parameters():
        parameter.data = random(*parameter.shape, seed=seed).to(parameter.dtype)
    return layer


def lm_head(vocabulary: int = 128, width: int = 64, seed: int = SEED) -> VocabParallelEmbedding:
    head = VocabParallelEmbedding(vocabulary, width, enable_tp=False)
    head.weight.data = random(*head.weight.shape, seed=seed)
    return head


def logits(head: VocabParallelEmbedding, x: torch.Tensor) -> torch.Tensor:
    return head.quant_method.apply(head, x)


class Model(torch.nn.Module):
    """Two linear layers and a head, with SGLang's way of loading weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up = linear(64, 96, bias=True)
        self.down = linear(96, 64, bias=False, seed=SEED + 1)
        self.lm_head = lm_head()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return logits(self.lm_head, self.down(self.up(x)[0])[0])

    def reference(self, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        w = {name: tensor.double() for name, tensor in weights.items()}
        hidden = x.double() @ w["up.weight"].T + w["up.bias"]
        return hidden @ w["down.weight"].T @ w["lm_head.weight"].T

    def load_weights(self, weights) -> set[str]:
        names = set()
        for name, tensor in weights:
            self.get_parameter(name).data.copy_(tensor)
            names.add(name)
        return names


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=3e-6 * scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unpacking_gives_the_exact_rows_back(dtype):
    layer = linear(129, 33, bias=False, params_dtype=dtype)
    rows = layer.weight.detach().clone()
    method = PackedLinearMethod(layer)
    assert layer.weight.numel() == 0
    method.unpack(layer)
    assert torch.equal(layer.weight, rows)
    method.pack(layer)
    assert layer.weight.numel() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_of_a_row_do_not_depend_on_the_other_rows(dtype):
    """Through a whole model, a bias, and more rows than one sweep computes."""
    model = Model().to(dtype)
    pack_model(model)
    x = random(300, 64, seed=SEED + 2).to(dtype)
    alone = torch.cat([model(row.unsqueeze(0)) for row in x])
    for rows in (2, 7, 64, 300):
        assert torch.equal(model(x[:rows]), alone[:rows]), rows
        assert torch.equal(model(x[300 - rows :]), alone[300 - rows :]), rows


def test_packing_works_inside_inference_mode():
    """SGLang's first logits come from inside it."""
    model = Model()
    weights, x = weights_of(model), random(3, 64)
    with torch.inference_mode():
        pack_model(model)
        actual = model(x.clone())
    assert_close(actual, model.reference(weights, x))


def test_a_packed_model_computes_the_same():
    model = Model()
    weights, x = weights_of(model), random(5, 64, seed=SEED + 2)
    pack_model(model)
    assert isinstance(model.up.quant_method, PackedLinearMethod)
    assert isinstance(model.lm_head.quant_method, PackedLMHeadMethod)
    assert_close(model(x), model.reference(weights, x))


def test_a_packed_model_of_bfloat16():
    model = Model().to(torch.bfloat16)
    weights, x = weights_of(model), random(5, 64, seed=SEED + 2).bfloat16()
    pack_model(model)
    assert isinstance(model.up.quant_method, PackedLinearMethod)
    assert isinstance(model.lm_head.quant_method, PackedLMHeadMethod)
    expected = model.reference(weights, x)
    # Three roundings to 8 bits, each of numbers up to the largest.
    torch.testing.assert_close(
        model(x).double(), expected, rtol=0, atol=expected.abs().max().item() * 3 * 2**-8
    )


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_embedding_that_is_no_head_looks_tokens_up(dtype, ids_dtype):
    model = Model()
    model.embed_tokens = lm_head(vocabulary=192, seed=SEED + 6).to(dtype)
    pack_model(model)
    ids = torch.tensor([[0, 5, 127], [191, 5, 1]], dtype=ids_dtype)
    embedded = model.embed_tokens.quant_method.embedding(model.embed_tokens, ids)
    assert type(model.embed_tokens.quant_method) is NativeEmbeddingMethod
    assert torch.equal(embedded, model.embed_tokens.weight[ids.long()])
    # A load writes the rows that look-ups read.
    rows = random(192, 64, seed=SEED + 8).to(dtype)
    model.load_weights([("embed_tokens.weight", rows)])
    assert torch.equal(
        model.embed_tokens.quant_method.embedding(model.embed_tokens, ids), rows[ids.long()]
    )


def test_what_cannot_be_packed_is_left_alone():
    class OtherMethod(UnquantizedLinearMethod):
        pass

    model = torch.nn.Module()
    model.kv_b_proj = linear(64, 96)
    model.float16_linear = linear(64, 96, params_dtype=torch.float16)
    model.quantized = linear(64, 96)
    model.quantized.quant_method = OtherMethod()
    model.plain = torch.nn.Linear(64, 96)
    model.lm_head = VocabParallelEmbedding(128, 64, enable_tp=False, params_dtype=torch.float16)
    before = {
        name: (module.quant_method, module.weight.data_ptr())
        for name, module in model.named_modules()
        if isinstance(module, LinearBase | VocabParallelEmbedding)
    }
    assert len(before) == 4
    pack_model(model)
    for name, (method, address) in before.items():
        module = model.get_submodule(name)
        assert module.quant_method is method, name
        assert module.weight.data_ptr() == address, name
    assert not hasattr(model, "load_weights")


def test_loaded_weights_are_served():
    model, other = Model(), Model()
    pack_model(model)
    x = random(4, 64, seed=SEED + 3)
    model(x)  # makes the packed head that must be forgotten
    new = {name: random(*tensor.shape, seed=SEED + 7) for name, tensor in weights_of(other).items()}
    assert model.load_weights(new.items()) == set(new)
    assert model.up.weight.numel() == 0
    assert_close(model(x), model.reference(new, x))


def test_weights_survive_a_load_that_fails_half_way():
    model = Model()
    weights, x = weights_of(model), random(4, 64, seed=SEED + 3)
    pack_model(model)
    weights["up.weight"] = random(96, 64, seed=SEED + 9)

    def broken():
        yield "up.weight", weights["up.weight"]
        raise OSError("the file ends here")

    with pytest.raises(OSError, match="ends here"):
        model.load_weights(broken())
    assert model.up.weight.numel() == 0
    assert_close(model(x), model.reference(weights, x))


@pytest.mark.heavy
def packed_copies() -> int:
    gc.collect()
    return len(PackedLMHeadMethod._packed_by_address)


@pytest.mark.heavy
def test_target_and_draft_share_one_packed_lm_head():
    """As SGLang shares it: the draft's module takes the target's weight over."""
    before = packed_copies()
    target, draft = Model(), Model()
    for model in (target, draft):
        pack_model(model)
    draft.lm_head.weight = target.lm_head.weight
    x = random(2, 64)
    assert torch.equal(logits(target.lm_head, x), logits(draft.lm_head, x))
    assert packed_copies() == before + 1
    shared = target.lm_head.quant_method.head
    assert draft.lm_head.quant_method.head is shared
    del target, draft, shared, model
    assert packed_copies() == before


@pytest.mark.heavy
def test_a_head_that_took_a_weight_over_forgets_its_own():
    before = packed_copies()
    target, draft = Model(), Model()
    draft.lm_head.weight.data = random(128, 64, seed=SEED + 4)
    for model in (target, draft):
        pack_model(model)
    x = random(2, 64)
    own = logits(draft.lm_head, x)
    draft.lm_head.weight = target.lm_head.weight
    assert not torch.equal(logits(draft.lm_head, x), own)
    assert torch.equal(logits(draft.lm_head, x), logits(target.lm_head, x))
    assert packed_copies() == before + 1


@pytest.mark.parametrize("used", [("target", "draft"), ("target",), ("draft",)], ids="-".join)
def test_a_load_of_the_target_reaches_the_draft_too(used):
    """Whichever of the two has computed logits before."""
    models = {"target": Model(), "draft": Model()}
    for model in models.values():
        pack_model(model)
    models["draft"].lm_head.weight = models["target"].lm_head.weight
    x = random(2, 64)
    for name in used:
        logits(models[name].lm_head, x)
    rows = random(128, 64, seed=SEED + 5)
    models["target"].load_weights([("lm_head.weight", rows)])
    for model in models.values():
        assert_close(logits(model.lm_head, x), x.double() @ rows.double().T)


def test_a_tied_embedding_still_looks_tokens_up():
    model = Model()
    model.embed_tokens = model.lm_head
    rows = model.lm_head.weight.detach().clone()
    pack_model(model)
    ids = torch.tensor([0, 5, 127])
    embedded = model.embed_tokens.quant_method.embedding(model.embed_tokens, ids)
    assert torch.equal(embedded, rows[ids])
    assert_close(logits(model.lm_head, random(2, 64)), random(2, 64).double() @ rows.double().T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_head_that_is_an_embedding_of_torchs(dtype):
    """SGLang's Gemma 3: logits whose bits do not depend on who shares the batch, and look-ups."""
    model = Model().to(dtype)
    model.lm_head = torch.nn.Embedding(192, 64).to(dtype)
    pack_model(model)
    method, x = model.lm_head.quant_method, random(7, 64, seed=SEED + 9).to(dtype)
    logits = method.apply(model.lm_head, x)
    assert all(torch.equal(method.apply(model.lm_head, x[i : i + 1])[0], logits[i]) for i in (0, 6))
    expected = x.double() @ model.lm_head.weight.double().T
    tolerance = expected.abs().max().item() * (2**-8 if dtype == torch.bfloat16 else 1e-6)
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=tolerance)
    ids = torch.tensor([3, 191])
    assert torch.equal(model.lm_head(ids), model.lm_head.weight[ids])
