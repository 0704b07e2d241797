"""Keys that steps without drafts owe: when they are written, and of which rows.

Alone: pytest tests/serving/drafting/test_deferred_keys.py
"""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.forward_context import get_attn_backend

from fastmtp_sglang.serving.cpu.kv_pool import CpuMHATokenToKVPool
from fastmtp_sglang.serving.drafting import deferred_keys
from fastmtp_sglang.serving.drafting.deferred_keys import DeferredKeys

WIDTH = 3


class Head(torch.nn.Module):
    """A head whose keys are its tokens and its values its hidden states, and nothing behind."""

    saves = attends = True

    def forward(self, tokens, positions, batch):
        assert torch.equal(tokens, batch.input_ids)
        assert not torch.is_grad_enabled()
        residual_batch.start(batch)
        self.batch, self.positions = batch, positions
        if self.attends:
            hidden_states = batch.spec_info.hidden_states
            get_attn_backend().forward_decode(
                None, tokens, hidden_states, "layer", batch, save_kv_cache=self.saves
            )
            raise AssertionError("behind the attention")


@pytest.fixture
def pool():
    """Notes what is written: slot -> key, value."""
    made = SimpleNamespace(written={}, passes=0)

    def set_kv_buffer(layer, write, keys, values):
        assert layer == "layer"
        made.passes += 1
        rows = zip(keys.tolist(), values.tolist(), strict=True)
        made.written |= dict(zip(write.loc.tolist(), rows, strict=True))

    made.set_kv_buffer = set_kv_buffer
    return made


@pytest.fixture
def keys(pool) -> DeferredKeys:
    return DeferredKeys(SimpleNamespace(model=Head(), token_to_kv_pool=pool))


def owe(keys: DeferredKeys, requests: str, step: int) -> None:
    """A verification without drafts of some requests; each number tells of row and step."""
    rows = torch.arange(len(requests)) + 100 * step
    batch = SimpleNamespace(reqs=list(requests), seq_lens=rows + 10, out_cache_loc=rows + 20)
    result = SimpleNamespace(
        next_token_ids=rows.to(torch.int32),
        logits_output=SimpleNamespace(
            hidden_states=rows.unsqueeze(1).expand(-1, WIDTH).float().contiguous()
        ),
    )
    keys.owe(batch, result)
    # SGLang's buffers are used again in the next step.
    for tensor in (batch.seq_lens, batch.out_cache_loc, result.next_token_ids):
        tensor.fill_(-1)
    result.logits_output.hidden_states.fill_(-1)


def test_steps_are_written_together(keys, pool):
    owe(keys, "ab", 1)
    owe(keys, "ab", 2)
    assert pool.passes == 0
    keys.write()
    assert pool.passes == 1
    rows = [100, 101, 200, 201]
    assert pool.written == {row + 20: (row, [row] * WIDTH) for row in rows}
    batch = keys._model.batch
    assert keys._model.positions.tolist() == [row + 10 for row in rows]
    assert (batch.seq_lens - batch.positions).tolist() == [1] * 4
    assert batch.residual_stream is None  # nothing of the pass is kept


def test_what_is_written_is_owed_no_more(keys, pool):
    keys.write()
    owe(keys, "a", 1)
    keys.write()
    keys.write()
    assert pool.passes == 1


@pytest.mark.parametrize("others", ["a", "abc", "ba", "cd"])
def test_before_slots_may_change_hands(keys, pool, others):
    """As soon as the batch holds other requests than those that owe."""
    owe(keys, "ab", 1)
    owe(keys, others, 2)
    assert sorted(pool.written) == [120, 121]
    keys.write()
    assert sorted(pool.written) == [120, 121, *(220 + row for row in range(len(others)))]


def test_a_pass_has_a_limited_number_of_rows(keys, pool, monkeypatch):
    monkeypatch.setattr(deferred_keys, "_MOST_ROWS", 6)
    for step in range(4):
        owe(keys, "ab", step)
    assert (pool.passes, len(pool.written)) == (1, 6)
    keys.write()
    assert (pool.passes, len(pool.written)) == (2, 8)


def test_a_model_may_store_its_keys_itself(keys, pool):
    keys._model.saves = False
    owe(keys, "a", 1)
    keys.write()
    assert pool.passes == 0


def test_a_head_without_attention_is_a_fault(keys):
    keys._model.attends = False
    owe(keys, "a", 1)
    with pytest.raises(AssertionError, match="without attention"):
        keys.write()


def runner(*, layers=1, pool=MHATokenToKVPool, dtype=torch.float32, mrope=False):
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(
        [RadixAttention(1, 4, 0.5, 1, layer_id=i) for i in range(layers)]
    )
    made = object.__new__(pool)
    made.dtype = dtype
    return SimpleNamespace(
        model=model,
        dtype=torch.float32,
        token_to_kv_pool=made,
        model_config=SimpleNamespace(model_is_mrope=mrope),
    )


class OtherPool(MHATokenToKVPool):
    """Keeps other things, or elsewhere."""


def test_which_heads_may_owe():
    assert DeferredKeys.possible(runner())
    assert DeferredKeys.possible(runner(pool=CpuMHATokenToKVPool))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 0},
        {"layers": 2},
        {"pool": OtherPool},
        {"dtype": torch.float8_e5m2},
        {"mrope": True},
    ],
    ids=str,
)
def test_which_may_not(change):
    assert not DeferredKeys.possible(runner(**change))
