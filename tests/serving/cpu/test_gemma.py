"""Gemma 3 by native operators: SGLang's own layers bit by bit, recorded or not.

Alone: pytest tests/serving/cpu/test_gemma.py
"""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models as models
import torch
from safetensors.torch import load_file
from sglang.kernels import fused_op
from sglang.srt.layers.rotary_embedding import utils as rotary_utils
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.models import gemma3_causal
from sglang.srt.models import utils as models_utils
from sglang.srt.runtime_context import get_parallel
from transformers import Gemma3TextConfig

from fastmtp_sglang.head.config import GEMMA, FastMTPConfig
from fastmtp_sglang.serving.cpu import fused, gemma, replay
from fastmtp_sglang.serving.cpu.attention import CpuAttnBackend
from fastmtp_sglang.serving.cpu.packed_linear import pack_model
from fastmtp_sglang.serving.drafting import head_model
from fastmtp_sglang.serving.drafting.head_model import FastMTPHead

DTYPES = [torch.float32, torch.bfloat16]
LAYERS, KEY_HEADS, SIZE, CONTEXT = 2, 2, 16, 600
# Beyond the window, and more rows than a sweep holds.
PASSES = [(0, 9), (9, 1), (10, 1), (11, 4), (15, 300), (315, 1), (316, 20)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return models.target(tmp_path_factory.mktemp("gemma"), GEMMA)


@pytest.fixture(autouse=True)
def platform(monkeypatch) -> Iterator[None]:
    """SGLang's layers as our platform lets them compute, in one process."""
    monkeypatch.setattr(fused_op, "_oot_dispatch_key", lambda: "here")
    monkeypatch.setattr(fused_op.BaseFusedOp, "_oot_forward_registry", {})
    monkeypatch.setattr(models_utils, "_reshape_for_qk_norm", models_utils._reshape_for_qk_norm)
    fused.register("here")
    # Compiled it computes the same, after a minute.
    eager = rotary_utils.apply_rotary_pos_emb_native_eager
    monkeypatch.setattr(gemma3_causal, "apply_rotary_pos_emb", eager)
    alone = {"tp_size": 1, "tp_rank": 0, "tp_group": None}
    with get_parallel().override(**alone):
        yield


class Model(torch.nn.Module):
    """SGLang's model as far as its last norm."""

    load_weights = gemma3_causal.Gemma3ForCausalLM.load_weights

    def __init__(self, config: Gemma3TextConfig) -> None:
        super().__init__()
        self.model = gemma3_causal.Gemma3TextModel(config)
        self.lm_head = self.model.embed_tokens


def in_dtype(dtype: torch.dtype, make):
    """What `make` builds while a dtype is torch's default, as SGLang loads models."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return make()
    finally:
        torch.set_default_dtype(before)


def model(checkpoint: Path, dtype: torch.dtype) -> Model:
    config = Gemma3TextConfig.from_pretrained(checkpoint)
    made = in_dtype(dtype, lambda: Model(config))
    with torch.no_grad():
        made.load_weights(load_file(checkpoint / "model.safetensors").items())
    pack_model(made)
    return made


def head(checkpoint: Path, dtype: torch.dtype, monkeypatch) -> FastMTPHead:
    """Of random weights, with an embedding of its own."""
    monkeypatch.setattr(head_model, "LogitsProcessor", lambda config: torch.nn.Identity())
    config = FastMTPConfig.from_target(Gemma3TextConfig.from_pretrained(checkpoint))
    made = in_dtype(dtype, lambda: FastMTPHead(config))
    source = torch.Generator().manual_seed(models.SEED)
    made.embed_tokens.weight = torch.nn.Parameter(
        torch.empty(config.vocab_size, config.hidden_size, dtype=dtype), requires_grad=False
    )
    for parameter in made.parameters():
        if not parameter.is_meta:
            parameter.data.copy_(torch.randn(parameter.shape, generator=source) / 4)
    pack_model(made)
    return made


class Machine:
    """Pools and a backend, in which one request is prefilled and decoded."""

    def __init__(self, dtype: torch.dtype) -> None:
        keys, values = (
            [torch.zeros(CONTEXT, KEY_HEADS, SIZE, dtype=dtype) for _ in range(LAYERS)]
            for _ in range(2)
        )
        runner = SimpleNamespace(
            req_to_token_pool=SimpleNamespace(
                req_to_token=torch.arange(CONTEXT, dtype=torch.int32).view(1, -1)
            ),
            token_to_kv_pool=SimpleNamespace(
                get_key_buffer=keys.__getitem__, get_value_buffer=values.__getitem__
            ),
            model_config=SimpleNamespace(context_len=CONTEXT),
        )
        self.backend = CpuAttnBackend(runner)

    @torch.no_grad()
    def run(self, forward, first: int, count: int, *inputs: torch.Tensor) -> torch.Tensor:
        """Positions first..first + count - 1: a decode step if it is one row, else a prefill."""
        positions = torch.arange(first, first + count)
        batch = SimpleNamespace(
            forward_mode=ForwardMode.DECODE if count == 1 else ForwardMode.EXTEND,
            req_pool_indices=torch.zeros(1, dtype=torch.int64),
            seq_lens=torch.tensor([first + count]),
            extend_prefix_lens=torch.tensor([first]),
            extend_seq_lens=torch.tensor([count]),
            out_cache_loc=positions.clone(),
            global_num_token_non_padded_cpu=None,
            residual_stream=None,
        )
        self.backend.init_forward_metadata(batch)
        ids = (positions * 7919) % 49152
        with forward_context(ForwardContext(attn_backend=self.backend)):
            return forward(ids, positions, batch, *inputs)


def machine_of(made: torch.nn.Module, dtype: torch.dtype) -> Machine:
    """One for the model's life: what has been recorded names its caches."""
    return made.__dict__.setdefault("machine", Machine(dtype))


def outputs(made: Model, dtype: torch.dtype) -> list[torch.Tensor]:
    machine = machine_of(made, dtype)
    return [machine.run(made.model, *each) for each in PASSES]


def drafted(made: FastMTPHead, dtype: torch.dtype) -> list[torch.Tensor]:
    machine, source = machine_of(made, dtype), torch.Generator().manual_seed(models.SEED)
    width = made.config.hidden_size
    return [
        machine.run(
            lambda *given: made.states(*given),
            *(first, count, torch.randn(count, width, generator=source).to(dtype)),
        )
        for first, count in PASSES
    ]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.isfinite().all()


def is_recorded(owner: torch.nn.Module) -> bool:
    return all(replay.tape(owner, mode) for mode in (ForwardMode.EXTEND, ForwardMode.DECODE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layers_are_sglangs_bit_by_bit(checkpoint, dtype):
    """Both kinds of layers; one by one, recorded, and swept once more."""
    expected = outputs(model(checkpoint, dtype), dtype)
    made = model(checkpoint, dtype)
    gemma.install(made)
    assert_same(outputs(made, dtype), expected)
    replay.install(made)
    assert_same(outputs(made, dtype), expected)
    assert is_recorded(made.model)
    assert_same(outputs(made, dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", ["sliding_attention", "full_attention"])
def test_a_heads_block_too(tmp_path, monkeypatch, last, dtype):
    kinds = ["full_attention", last]
    checkpoint = models.target(tmp_path / "target", GEMMA, layer_types=kinds)
    stock, made = (head(checkpoint, dtype, monkeypatch) for _ in range(2))
    stock.join = made.join = fused.join
    expected = drafted(stock, dtype)
    gemma.install(made)
    assert_same(drafted(made, dtype), expected)
    replay.install(made)
    assert_same(drafted(made, dtype), expected)
    assert is_recorded(made)
    assert_same(drafted(made, dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layers_table_is_what_its_model_computes(checkpoint, dtype):
    """Of every position, for both bases."""
    body = model(checkpoint, dtype).model
    for layer, computed in zip(body.layers, (body.rotary_emb, body.rotary_emb_local), strict=True):
        table = layer.self_attn.rotary_emb.cos_sin_cache
        angles = computed(torch.zeros(1, dtype=dtype), torch.arange(len(table)).unsqueeze(0))
        cos, sin = (half.squeeze(0).chunk(2, dim=1) for half in angles)
        assert torch.equal(cos[0], cos[1])
        assert torch.equal(torch.cat((cos[0], sin[0]), 1), table)
    assert not torch.equal(*(layer.self_attn.rotary_emb.cos_sin_cache for layer in body.layers))


def test_scaled_positions_are_computed_as_before(checkpoint):
    """As larger Gemmas have them in layers without a window; SGLang's tables know nothing of it."""
    stock, made = (model(checkpoint, torch.float32) for _ in range(2))
    unscaled = outputs(stock, torch.float32)
    for each in (stock, made):
        each.model.rotary_emb.inv_freq = each.model.rotary_emb.inv_freq / 8
    expected = outputs(stock, torch.float32)
    gemma.install(made)
    replay.install(made)
    assert_same(outputs(made, torch.float32), expected)
    assert not is_recorded(made.model)
    assert not torch.equal(unscaled[-1], expected[-1])


def test_other_models_are_left_alone():
    other = torch.nn.Linear(2, 2)
    gemma.install(other)
    assert "forward" not in other.__dict__
