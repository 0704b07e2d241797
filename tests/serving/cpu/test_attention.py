"""Attention on the CPU as SGLang calls it: what each mode sees, the cache, and what is refused.

The operator itself is tested in native/test_attention.py.
Alone: pytest tests/serving/cpu/test_attention.py
"""

from types import SimpleNamespace

import pytest
import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.cpu.attention import CpuAttnBackend, CpuDraftAttnBackend, visibility

SEED = 20250918

HEADS, KEY_HEADS, SIZE = 4, 2, 16


class Pool:
    """The part of a KV pool that the backend uses, for one layer."""

    def __init__(self, slots: int, dtype: torch.dtype) -> None:
        self.keys, self.values = (
            torch.zeros(slots, KEY_HEADS, SIZE, dtype=dtype) for _ in range(2)
        )

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.values


def runner(slots: int = 200, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """Of requests 0 and 1, whose slots lie in turns and backwards."""
    table = torch.arange(1, slots + 1).flip(0).view(-1, 2).T.contiguous()
    return SimpleNamespace(
        req_to_token_pool=SimpleNamespace(req_to_token=table.to(torch.int32)),
        token_to_kv_pool=Pool(slots + 1, dtype),
        model_config=SimpleNamespace(context_len=slots),
    )


def layer(**fields) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "layer_id": 0,
            "tp_q_head_num": HEADS,
            "qk_head_dim": SIZE,
            "v_head_dim": SIZE,
            "scaling": SIZE**-0.5,
            "sliding_window_size": None,
            "is_cross_attention": False,
            "attn_type": "decoder",
            "logit_cap": 0.0,
            **fields,
        }
    )


def batch(mode: str, seq_lens: list[int], **fields) -> SimpleNamespace:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    return SimpleNamespace(
        forward_mode=ForwardMode[mode],
        req_pool_indices=torch.arange(len(seq_lens)).flip(0),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        batch_size=len(seq_lens),
        **fields,
    )


def seen(backend: CpuAttnBackend) -> list[tuple[int, int, int]]:
    """Request, number of keys from the first on, and bits of each row."""
    table = backend.req_to_token_pool.req_to_token
    addresses = [row.data_ptr() for row in table]
    return [
        (addresses.index(address), prefix, bits)
        for address, prefix, bits in backend.visible.tolist()
    ]


def test_visibility():
    table = torch.zeros(5, 7, dtype=torch.int32)
    rows = visibility(table, torch.tensor([4, 0]), torch.tensor([3, 7]))
    assert rows.tolist() == [[table[4].data_ptr(), 3, 0], [table[0].data_ptr(), 7, 0]]
    rows = visibility(table, torch.tensor([1]), torch.tensor([3]), torch.tensor([0b101]))
    assert rows.tolist() == [[table[1].data_ptr(), 3, 0b101]]


CHAIN = SimpleNamespace(topk=1, draft_token_num=3)
EXTEND = {"extend_prefix_lens": torch.tensor([2, 0]), "extend_seq_lens": torch.tensor([3, 2])}
# The first request of each batch has row 1 of the table, the second one row 0.
MODES = {
    "decode": (("DECODE", [7, 9], {}), [[7], [9]]),
    "verify": (("TARGET_VERIFY", [7, 9], {"spec_info": CHAIN}), [[8, 9, 10], [10, 11, 12]]),
    "draft extend": (
        ("DRAFT_EXTEND_V2", [7, 9], {"input_ids": torch.zeros(6)}),
        [[5, 6, 7], [7, 8, 9]],
    ),
    "prefill": (("EXTEND", [5, 2], EXTEND), [[3, 4, 5], [1, 2]]),
}


@pytest.mark.parametrize("mode", MODES)
def test_what_each_mode_sees(mode):
    (name, seq_lens, fields), visible = MODES[mode]
    backend = CpuAttnBackend(runner())
    backend.init_forward_metadata(batch(name, seq_lens, **fields))
    assert seen(backend) == [
        (request, keys, 0) for request, rows in zip((1, 0), visible, strict=True) for keys in rows
    ]


def test_an_idle_batch_sees_nothing():
    backend = CpuAttnBackend(runner())
    backend.init_forward_metadata(batch("DECODE", [7]))
    backend.init_forward_metadata(batch("IDLE", []))
    assert backend.visible.shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, -1, 4])
def test_forward_writes_the_cache_and_attends(window, dtype):
    """A prefill, then a decode step, against float64 attention over all keys at once."""
    generator = torch.Generator().manual_seed(SEED)
    # As a layer has them: parts of one projection.
    projected = torch.randn(9, (HEADS + 2 * KEY_HEADS) * SIZE, generator=generator).to(dtype)
    q, k, v = projected.split([HEADS * SIZE, KEY_HEADS * SIZE, KEY_HEADS * SIZE], dim=1)
    machine = runner(dtype=dtype)
    backend = CpuAttnBackend(machine)
    slots = machine.req_to_token_pool.req_to_token[0, :9].long()
    extend = {"extend_prefix_lens": torch.tensor([0]), "extend_seq_lens": torch.tensor([8])}
    first = batch("EXTEND", [8], out_cache_loc=slots[:8], **extend)
    second = batch("DECODE", [9], out_cache_loc=slots[8:])
    attention = layer(sliding_window_size=window)
    backend.init_forward_metadata(first)
    outputs = [backend.forward_extend(q[:8], k[:8], v[:8], attention, first)]
    backend.init_forward_metadata(second)
    outputs.append(backend.forward_decode(q[8:], k[8:], v[8:], attention, second))

    pool = machine.token_to_kv_pool
    assert torch.equal(pool.keys[slots].flatten(1), k)
    assert torch.equal(pool.values[slots].flatten(1), v)
    query = q.double().view(9, HEADS, SIZE)
    keys, values = (
        t.double().view(9, KEY_HEADS, SIZE).repeat_interleave(HEADS // KEY_HEADS, 1) for t in (k, v)
    )
    distance = torch.arange(9).unsqueeze(1) - torch.arange(9)
    hidden = (distance < 0) | (distance > (9 if window in (None, -1) else window))
    scores = torch.einsum("rhd,thd->hrt", query, keys) * SIZE**-0.5
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    expected = torch.einsum("hrt,thd->rhd", weights, values).flatten(1)
    rounding = 2**-8 if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(torch.cat(outputs).double(), expected, rtol=rounding, atol=2e-6)


def test_forward_can_leave_the_cache_alone():
    machine = runner()
    backend = CpuAttnBackend(machine)
    step = batch("DECODE", [1], out_cache_loc=torch.tensor([1]))
    backend.init_forward_metadata(step)
    k = torch.ones(1, KEY_HEADS * SIZE)
    q = torch.ones(1, HEADS * SIZE)
    backend.forward_decode(q, k, k, layer(), step, save_kv_cache=False)
    assert not machine.token_to_kv_pool.keys.any()
    backend.forward_decode(q, k, k, layer(), step)
    assert machine.token_to_kv_pool.keys[1].eq(1).all()
    assert machine.token_to_kv_pool.keys.sum() == KEY_HEADS * SIZE


@pytest.mark.parametrize(
    ("fields", "kwargs", "named"),
    [
        ({"logit_cap": 30.0}, {}, "a cap of 30.0 on attention scores"),
        ({"is_cross_attention": True}, {}, "cross or encoder attention"),
        ({}, {"sinks": torch.zeros(4)}, "sinks"),
    ],
)
def test_attention_that_it_lacks_is_refused(fields, kwargs, named):
    backend = CpuAttnBackend(runner())
    step = batch("DECODE", [1], out_cache_loc=torch.tensor([1]))
    q = torch.zeros(1, HEADS * SIZE)
    with pytest.raises(FastMTPError, match=f"needs {named}.*FASTMTP_CPU=0"):
        backend.forward_decode(q, None, None, layer(**fields), step, **kwargs)


def test_encoder_attention_is_refused():
    from sglang.srt.layers.radix_attention import AttentionType

    backend = CpuAttnBackend(runner())
    step = batch("DECODE", [1], out_cache_loc=torch.tensor([1]))
    encoder = layer(attn_type=AttentionType.ENCODER_ONLY)
    with pytest.raises(FastMTPError, match="cross or encoder attention"):
        backend.forward_decode(torch.zeros(1, HEADS * SIZE), None, None, encoder, step)


def test_a_tree_that_is_verified():
    """Two branches behind the root, the second one deeper."""
    above = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]).bool()
    spec = SimpleNamespace(topk=2, draft_token_num=4, custom_mask=above.flatten())
    backend = CpuAttnBackend(runner())
    backend.init_forward_metadata(batch("TARGET_VERIFY", [7], spec_info=spec))
    assert seen(backend) == [(0, 7, bits) for bits in (0b1, 0b11, 0b101, 0b1101)]


@pytest.mark.parametrize("topk", [1, 3])
def test_a_draft_has_a_backend_for_each_pass_after_the_first(topk):
    """SGLang's slots are those of pages; ours follow the last token that was decided."""
    machine = runner()
    drafting = CpuDraftAttnBackend(machine, topk, num_steps=4)
    forward_batch = batch("DECODE", [7], out_cache_loc=None)
    drafting.init_forward_metadata(forward_batch)
    assert [seen(backend) for backend in drafting.attn_backends] == [
        [(0, 7, own << 4 * branch) for branch in range(topk)] for own in (0b1, 0b11, 0b111)
    ]
    if topk > 1:
        table = machine.req_to_token_pool.req_to_token
        assert forward_batch.out_cache_loc.tolist() == table[0, 7 : 7 + 4 * topk].tolist()
