"""Attention on the CPU against a float64 reference, and its claim of reproducible bits.

Alone: pytest tests/serving/cpu/test_attention.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from serving.cpu import attention_cases as cases

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.cpu import mkl_mode
from fastmtp_sglang.serving.cpu.attention import (
    AttentionCall,
    CpuAttnBackend,
    CpuChainAttnBackend,
    _key_width,
    plan_prefill,
    plan_uniform,
)

SEED = 20250918


def reference(
    cache: cases.Cache,
    requests: list[int],
    visible: list[list[int]],
    query: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """Softmax attention in float64, one row and one head at a time."""
    output = torch.empty(query.shape, dtype=torch.float64)
    row = 0
    for request, lengths in zip(requests, visible, strict=True):
        for length in lengths:
            first = 0 if window < 0 else max(0, length - 1 - window)
            slots = cache.req_to_token[request, first:length].long()
            for head in range(query.shape[1]):
                key_head = head // cache.group
                keys = cache.keys[slots, key_head].double()
                scores = keys @ query[row, head].double() * cache.scale
                values = cache.values[slots, key_head].double()
                output[row, head] = scores.softmax(0) @ values
            row += 1
    return output


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    # Values are standard normal; float32 sums of up to 1,000 of them stay well inside this.
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("n", range(1, 9))
def test_rows_of_a_mixed_batch(n):
    """Decoding, verification and draft extension: lengths of several buckets in one batch."""
    generator = torch.Generator().manual_seed(SEED + n)
    for window in (-1, 0, 7, 100):
        bs = cases.choose(generator, (1, 2, 4, 7))
        cache = cases.random_cache(generator, bs)
        requests = torch.randperm(bs, generator=generator).tolist()
        lengths = [n - 1 + cases.choose(generator, cases.LENGTHS) for _ in range(bs)]
        query = cases.random_query(generator, cache, bs * n)
        visible = [list(range(length - n + 1, length + 1)) for length in lengths]
        assert_close(
            cases.uniform(cache, requests, lengths, query, window),
            reference(cache, requests, visible, query, window),
        )


@pytest.mark.parametrize("window", [-1, 0, 7, 100])
@pytest.mark.parametrize(
    ("prefixes", "extends"),
    [([0], [1]), ([0, 0, 0], [3, 300, 17]), ([1, 40, 513], [260, 1, 70]), ([200], [64])],
)
def test_prefill(prefixes, extends, window):
    """Whole prompts and appended parts, some longer than one chunk of rows."""
    generator = torch.Generator().manual_seed(SEED + sum(extends))
    cache = cases.random_cache(generator, len(prefixes))
    requests = torch.randperm(len(prefixes), generator=generator).tolist()
    query = cases.random_query(generator, cache, sum(extends))
    visible = [list(range(p + 1, p + e + 1)) for p, e in zip(prefixes, extends, strict=True)]
    assert_close(
        cases.prefill(cache, requests, prefixes, extends, query, window),
        reference(cache, requests, visible, query, window),
    )


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("threads", "batches", "dtype"),
    [(1, 100, "float32"), (2, 30, "float32"), (1, 30, "bfloat16")],
)
def test_bits_of_a_row_do_not_depend_on_what_is_computed_beside_it(threads, batches, dtype):
    """Each batch in seven ways, random from SEED; two threads also share single products."""
    result = subprocess.run(
        [sys.executable, Path(cases.__file__), str(SEED), str(batches), dtype],
        env={
            **os.environ,
            "MKL_CBWR": mkl_mode(),
            "OMP_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "passive",
        },
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    assert len(counts) == 7
    assert all(compared >= 2 * batches for compared, _ in counts.values()), counts
    assert not any(differ for _, differ in counts.values()), counts


def test_the_comparison_of_bits_sees_a_difference(monkeypatch):
    """What the test above relies on: one row of four differs by one bit."""
    rows = torch.randn(4, 2, 16, generator=torch.Generator().manual_seed(SEED))
    other = rows.clone()
    other[2, 1, 3] = torch.nextafter(other[2, 1, 3], torch.tensor(9.0))
    ways = [("changed", rows, other), ("same", rows, rows.clone())]
    monkeypatch.setattr(cases, "_ways", lambda generator: ways)
    assert cases.differing_rows(SEED, cases=2) == {"changed": [8, 2], "same": [8, 0]}


def test_key_widths():
    """Multiples of 16, never in the range where MKL sums otherwise, never 512 too many."""
    for length in range(1, 2000):
        width = _key_width(length)
        assert width % 16 == 0
        assert length <= width < length + 192
        assert not 192 < width % 512 < 384


def test_lengths_of_one_bucket_share_a_call():
    table = torch.arange(1, 8001).view(4, 2000)
    visible = torch.tensor([[40], [64], [65], [1500]])
    calls = plan_uniform(table, torch.arange(4), visible)
    assert [call.visible.flatten().tolist() for call in calls] == [[40, 64], [65], [1500]]
    assert [call.slots.shape[1] for call in calls] == [64, 80, 1504]
    together = plan_uniform(table, torch.arange(2), visible[:2])
    assert [call.tokens for call in together] == [slice(0, 2)]


def test_slots_beyond_the_end_are_the_padding_slot():
    """Also where the request table is narrower than the padded width."""
    table = torch.arange(1, 41).view(2, 20)
    (call,) = plan_uniform(table, torch.tensor([1, 0]), torch.tensor([[3], [20]]))
    assert call.slots.shape == (2, 32)
    assert call.slots[0].tolist() == [21, 22, 23] + [0] * 29
    assert call.slots[1].tolist() == [*range(1, 21)] + [0] * 12


def test_prefill_reads_no_keys_of_later_chunks():
    table = torch.arange(1, 2001).view(1, 2000)
    calls = plan_prefill(table, torch.tensor([0]), [10], [600])
    assert [call.tokens for call in calls] == [slice(0, 256), slice(256, 512), slice(512, 600)]
    assert [call.slots.shape[1] for call in calls] == [384, 528, 624]
    assert [call.visible[0, [0, -1]].tolist() for call in calls] == [
        [11, 266],
        [267, 522],
        [523, 610],
    ]


def test_a_mask_is_made_once_for_all_layers():
    call = AttentionCall(slice(0, 2), torch.zeros(1, 16, dtype=torch.int64), torch.tensor([[3, 4]]))
    mask = call.mask(3, -1)
    assert call.mask(3, -1) is mask
    assert mask.shape == (1, 1, 8, 16)
    seen = (mask[0, 0] == 0).sum(1).tolist()
    assert seen == [3, 4, 3, 4, 3, 4, 16, 16]  # the last two rows are padding
    assert call.mask(3, 1)[0, 0, 1, :5].tolist() == [float("-inf")] * 2 + [0, 0] + [float("-inf")]


# --- SGLang's interface over it ---

HEADS, KEY_HEADS, SIZE = 4, 2, 16


class Pool:
    """The part of a KV pool that the backend uses, for one layer."""

    def __init__(self, slots: int) -> None:
        self.keys = torch.zeros(slots, KEY_HEADS, SIZE)
        self.values = torch.zeros(slots, KEY_HEADS, SIZE)

    def set_kv_buffer(self, layer, location, k, v) -> None:
        self.keys[location.loc] = k.view(-1, KEY_HEADS, SIZE)
        self.values[location.loc] = v.view(-1, KEY_HEADS, SIZE)

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.values


def runner(slots: int = 200) -> SimpleNamespace:
    return SimpleNamespace(
        req_to_token_pool=SimpleNamespace(
            req_to_token=torch.arange(1, slots).view(1, -1).to(torch.int32)
        ),
        token_to_kv_pool=Pool(slots),
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
        req_pool_indices=torch.zeros(len(seq_lens), dtype=torch.int64),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        batch_size=len(seq_lens),
        **fields,
    )


@pytest.mark.parametrize(
    ("forward_batch", "draft_step", "visible"),
    [
        (("DECODE", [7, 9], {}), None, [[7], [9]]),
        (("DECODE", [7, 9], {}), 0, [[8], [10]]),
        (("DECODE", [7, 9], {}), 1, [[9], [11]]),
        (
            ("TARGET_VERIFY", [7, 9], {"spec_info": SimpleNamespace(topk=1, draft_token_num=3)}),
            None,
            [[8, 9, 10], [10, 11, 12]],
        ),
        (
            ("DRAFT_EXTEND_V2", [7, 9], {"input_ids": torch.zeros(6)}),
            None,
            [[5, 6, 7], [7, 8, 9]],
        ),
    ],
    ids=["decode", "first draft step", "second draft step", "verify", "draft extend"],
)
def test_what_each_mode_sees(forward_batch, draft_step, visible):
    mode, seq_lens, fields = forward_batch
    backend = CpuAttnBackend(runner(), draft_step)
    backend.init_forward_metadata(batch(mode, seq_lens, **fields))
    (call,) = backend.calls
    assert call.visible.tolist() == visible


def test_a_prefill_sees_its_prefix_and_itself():
    backend = CpuAttnBackend(runner())
    extend = {"extend_prefix_lens": torch.tensor([2]), "extend_seq_lens": torch.tensor([3])}
    backend.init_forward_metadata(batch("EXTEND", [5], **extend))
    assert [call.visible.tolist() for call in backend.calls] == [[[3, 4, 5]]]


def test_an_idle_batch_needs_no_plan():
    backend = CpuAttnBackend(runner())
    backend.calls = [None]
    backend.init_forward_metadata(batch("IDLE", []))
    assert backend.calls == []


@pytest.mark.parametrize("window", [None, -1, 4])
def test_forward_writes_the_cache_and_attends(window):
    """A prefill, then a decode step, equal to attention over all keys at once."""
    generator = torch.Generator().manual_seed(SEED)
    q, k, v = (
        torch.randn(9, heads * SIZE, generator=generator) for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    machine = runner()
    backend = CpuAttnBackend(machine)
    extend = {"extend_prefix_lens": torch.tensor([0]), "extend_seq_lens": torch.tensor([8])}
    first = batch("EXTEND", [8], out_cache_loc=torch.arange(1, 9), **extend)
    second = batch("DECODE", [9], out_cache_loc=torch.tensor([9]))
    outputs = []
    for step, rows in ((first, slice(0, 8)), (second, slice(8, 9))):
        backend.init_forward_metadata(step)
        arguments = (q[rows], k[rows], v[rows], layer(sliding_window_size=window), step)
        outputs.append(
            backend.forward_extend(*arguments)
            if step is first
            else backend.forward_decode(*arguments)
        )
    cache = cases.Cache(
        machine.req_to_token_pool.req_to_token,
        torch.cat((torch.zeros(1, KEY_HEADS, SIZE), k.view(9, KEY_HEADS, SIZE))),
        torch.cat((torch.zeros(1, KEY_HEADS, SIZE), v.view(9, KEY_HEADS, SIZE))),
        HEADS // KEY_HEADS,
        SIZE**-0.5,
    )
    expected = reference(
        cache, [0], [list(range(1, 10))], q.view(9, HEADS, SIZE), -1 if window is None else window
    )
    assert_close(torch.cat(outputs).view(9, HEADS, SIZE), expected)


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


def test_trees_are_refused():
    backend = CpuAttnBackend(runner())
    tree = batch("TARGET_VERIFY", [7], spec_info=SimpleNamespace(topk=2, draft_token_num=4))
    with pytest.raises(FastMTPError, match=r"--speculative-eagle-topk 2: .* chains, not trees"):
        backend.init_forward_metadata(tree)


def test_a_chain_has_a_backend_for_each_pass_after_the_first():
    chain = CpuChainAttnBackend(runner(), num_steps=4)
    chain.init_forward_metadata(batch("DECODE", [7]))
    seen = [backend.calls[0].visible.tolist() for backend in chain.attn_backends]
    assert seen == [[[8]], [[9]], [[10]]]
