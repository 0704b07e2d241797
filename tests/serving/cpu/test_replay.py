"""Bodies of models as tapes: bit by bit what their layers compute, and the layers where they must.

Alone: pytest tests/serving/cpu/test_replay.py
"""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.rotary_embedding import RotaryEmbedding
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context

from fastmtp_sglang.serving.cpu import fused, replay
from fastmtp_sglang.serving.cpu.attention import CpuAttnBackend
from fastmtp_sglang.serving.cpu.packed_linear import look_up, pack_model

SEED = 20250918
DTYPES = [torch.float32, torch.bfloat16]
WIDTH, HEADS, KEY_HEADS, SIZE, VOCABULARY, CONTEXT = 48, 3, 1, 16, 64, 60
ATTENTION = SimpleNamespace(
    layer_id=0,
    tp_q_head_num=HEADS,
    qk_head_dim=SIZE,
    v_head_dim=SIZE,
    scaling=SIZE**-0.5,
    sliding_window_size=None,
    is_cross_attention=False,
    attn_type="decoder",
    logit_cap=0.0,
)


class Body(torch.nn.Module):
    """A layer of SGLang's parts, with the operators that the platform gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = VocabParallelEmbedding(VOCABULARY, WIDTH, enable_tp=False)
        self.norm = RMSNorm(WIDTH)
        self.last_norm = RMSNorm(WIDTH)
        self.qkv = ReplicatedLinear(WIDTH, (HEADS + 2 * KEY_HEADS) * SIZE, bias=True)
        self.out = ReplicatedLinear(HEADS * SIZE, WIDTH, bias=False)
        self.rotary = RotaryEmbedding(SIZE, SIZE, CONTEXT, 10000, True, torch.float32)
        self.calls = 0
        self.factor = 1.0

    def forward(self, input_ids, positions, forward_batch, input_embeds=None):
        self.calls += 1
        x = look_up(self.embed_tokens, input_ids) if input_embeds is None else input_embeds
        if self.factor != 1.0:
            x = x * self.factor
        normed = fused.rms_norm(self.norm, x)
        qkv = self.qkv(normed)[0]
        q, k, v = qkv.split([HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE], dim=-1)
        q, k = fused.rotate(self.rotary, positions, q, k)
        mixed = forward_batch.backend.forward_extend(q, k, v, ATTENTION, forward_batch)
        return fused.rms_norm(self.last_norm, self.out(mixed)[0], x)[0]


class Model(torch.nn.Module):
    """A causal language model as far as its body; its weights are random from a seed."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.model = Body().to(dtype)
        self.shapes = {name: tensor.shape for name, tensor in self.named_parameters()}
        self.load_weights(self.random_weights(SEED))
        pack_model(self)

    def random_weights(self, seed: int) -> list[tuple[str, torch.Tensor]]:
        source = torch.Generator().manual_seed(seed)
        return [
            (name, torch.randn(shape, generator=source) / 4) for name, shape in self.shapes.items()
        ]

    def load_weights(self, weights) -> None:
        for name, tensor in weights:
            self.get_parameter(name).data.copy_(tensor)


class Machine:
    """Pools and a backend, in which one request is prefilled and decoded."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.caches = [torch.zeros(CONTEXT, KEY_HEADS, SIZE, dtype=dtype) for _ in range(2)]
        runner = SimpleNamespace(
            req_to_token_pool=SimpleNamespace(
                req_to_token=torch.arange(CONTEXT, dtype=torch.int32).view(1, -1)
            ),
            token_to_kv_pool=SimpleNamespace(
                get_key_buffer=lambda layer: self.caches[0],
                get_value_buffer=lambda layer: self.caches[1],
            ),
            model_config=SimpleNamespace(context_len=CONTEXT),
        )
        self.backend = CpuAttnBackend(runner)

    def run(self, body: Body, first: int, count: int, mode=None, **kwargs) -> torch.Tensor:
        """Positions first..first + count - 1: a decode step if it is one row, else a prefill."""
        positions = torch.arange(first, first + count)
        batch = SimpleNamespace(
            forward_mode=mode or (ForwardMode.DECODE if count == 1 else ForwardMode.EXTEND),
            req_pool_indices=torch.zeros(1, dtype=torch.int64),
            seq_lens=torch.tensor([first + count]),
            extend_prefix_lens=torch.tensor([first]),
            extend_seq_lens=torch.tensor([count]),
            out_cache_loc=positions.clone(),
            backend=self.backend,
        )
        self.backend.init_forward_metadata(batch)
        ids = (positions * 7) % VOCABULARY
        with torch.no_grad(), forward_context(ForwardContext(attn_backend=self.backend)):
            return body(ids, positions, batch, **kwargs)


PASSES = [(0, 9), (9, 1), (10, 1), (11, 4), (15, 30), (45, 1)]


def outputs(model: Model, dtype: torch.dtype, passes=PASSES) -> list[torch.Tensor]:
    machine = Machine(dtype)
    return [machine.run(model.model, *each) for each in passes]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_tape_is_the_layers_bit_by_bit(dtype):
    """One recording for each mode, swept for any number of rows."""
    plain, recorded = Model(dtype), Model(dtype)
    replay.install(recorded)
    for expected, actual in zip(outputs(plain, dtype), outputs(recorded, dtype), strict=True):
        assert torch.equal(actual, expected)
    assert plain.model.calls == len(PASSES)
    assert recorded.model.calls == 2
    # Once more, and without its layers.
    outputs(recorded, dtype)
    assert recorded.model.calls == 2


def test_what_one_row_recorded_serves_many():
    """A server's first request decodes alone."""
    plain, recorded = Model(), Model()
    replay.install(recorded)
    passes = [(0, 1, ForwardMode.EXTEND), (1, 5, ForwardMode.EXTEND), (6, 9, ForwardMode.EXTEND)]
    for expected, actual in zip(
        outputs(plain, torch.float32, passes), outputs(recorded, torch.float32, passes), strict=True
    ):
        assert torch.equal(actual, expected)
    assert recorded.model.calls == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loaded_weights_are_recorded_anew(dtype):
    model = Model(dtype)
    weights = model.random_weights(SEED + 1)
    replay.install(model)
    before = outputs(model, dtype)
    new = Model(dtype)
    for each in (model, new):
        each.load_weights(weights)
    for old, expected, actual in zip(
        before, outputs(new, dtype), outputs(model, dtype), strict=True
    ):
        assert torch.equal(actual, expected)
        assert not torch.equal(actual, old)


def test_a_body_that_does_other_work_runs_as_before():
    """It says so once for a mode, not at every step."""
    plain, tried = Model(), Model()
    replay.install(tried)
    plain.model.factor = tried.model.factor = 2.0
    for expected, actual in zip(
        outputs(plain, torch.float32), outputs(tried, torch.float32), strict=True
    ):
        assert torch.equal(actual, expected)
    assert tried.model.calls == len(PASSES) + 2


def test_embeddings_instead_of_ids_run_as_before():
    model, machine = Model(), Machine(torch.float32)
    replay.install(model)
    embeds = torch.ones(3, WIDTH)
    first = machine.run(model.model, 0, 3, input_embeds=embeds.clone())
    assert torch.equal(machine.run(model.model, 0, 3, input_embeds=embeds.clone()), first)
    assert model.model.calls == 2


def test_another_attention_runs_as_before():
    class OtherBackend(CpuAttnBackend):
        pass

    model, machine = Model(), Machine(torch.float32)
    replay.install(model)
    machine.backend.__class__ = OtherBackend
    machine.run(model.model, 0, 3)
    machine.run(model.model, 3, 3)
    assert model.model.calls == 2


def test_a_second_installation_changes_nothing():
    model = Model()
    replay.install(model)
    forward = model.model.forward
    replay.install(model)
    assert model.model.forward is forward


def test_a_model_without_a_body_is_left_alone():
    model = torch.nn.Linear(2, 2)
    replay.install(model)
    assert "forward" not in model.__dict__
