"""Slots of the KV pool moved in all layers at once, without Triton.

Every case is random from SEED. Alone: pytest tests/serving/cpu/test_kv_pool.py
"""

import pytest
import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from fastmtp_sglang.serving.cpu import kv_pool

SEED = 20250918


def new_pool(dtype: torch.dtype = torch.float32) -> kv_pool.CpuMHATokenToKVPool:
    """Two layers."""
    return kv_pool.CpuMHATokenToKVPool(
        size=16,
        page_size=1,
        dtype=dtype,
        head_num=3,
        head_dim=5,
        layer_num=2,
        device="cpu",
        enable_memory_saver=False,
        enable_kv_cache_copy=True,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_kv_pool_moves_slots_without_triton(dtype):
    """Slots moved onto others, one of them read and written, one onto itself."""
    pool = new_pool(dtype)
    source = torch.Generator().manual_seed(SEED)
    before = []
    for layer in range(2):
        for buffer in (pool.get_key_buffer(layer), pool.get_value_buffer(layer)):
            buffer.copy_(torch.rand(buffer.shape, generator=source))
            before.append(buffer.clone())
    target, origin = torch.tensor([3, 5, 9, 2]), torch.tensor([5, 7, 1, 2])
    pool.move_kv_cache(target, origin)
    after = [
        buffer
        for layer in range(2)
        for buffer in (pool.get_key_buffer(layer), pool.get_value_buffer(layer))
    ]
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[target], old[origin])
        others = [slot for slot in range(len(old)) if slot not in (3, 5, 9)]
        assert torch.equal(new[others], old[others])


def test_slots_may_be_int32_and_of_any_shape():
    pool = new_pool()
    keys = pool.get_key_buffer(1)
    keys.copy_(torch.arange(keys.numel()).view(keys.shape))
    wanted = keys[[7, 8]].clone()
    target = torch.tensor([[1, 9], [2, 9]], dtype=torch.int32)[:, :1]
    pool.move_kv_cache(target, torch.tensor([[7], [8]], dtype=torch.int32))
    assert torch.equal(keys[[1, 2]], wanted)


@pytest.mark.parametrize("why", ["scales", "another layout"])
def test_other_buffers_are_moved_by_sglang(monkeypatch, why):
    """With scales of their own there is more to move; rows must lie one behind the other."""
    asked = []
    monkeypatch.setattr(
        MHATokenToKVPool, "_move_kv_cache_impl", lambda self, *slots: asked.append(slots)
    )
    pool = new_pool()
    if why == "scales":
        pool.k_scale_buffer = [torch.ones(17)]
    else:
        pool.v_buffer[1] = pool.v_buffer[1].transpose(1, 2)
    slots = torch.tensor([1]), torch.tensor([2])
    pool._move_kv_cache_impl(*slots)
    assert asked == [slots]


def test_memory_is_asked_for_in_huge_pages(monkeypatch):
    asked = []
    monkeypatch.setattr(kv_pool, "use_huge_pages", asked.append)
    pool = new_pool()
    assert len(asked) == 4
    assert {id(buffer) for buffer in asked} == {id(b) for b in (*pool.k_buffer, *pool.v_buffer)}
