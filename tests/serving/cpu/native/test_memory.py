"""Memory in huge pages: tensors like others, aligned, side by side, and freed with the last one.

Alone: pytest tests/serving/cpu/native/test_memory.py
"""

import gc
import weakref

import pytest
import torch

from fastmtp_sglang.serving.cpu.native import memory


def huge_bytes() -> int:
    with open("/proc/self/smaps_rollup") as lines:
        return sum(int(line.split()[1]) * 1024 for line in lines if "AnonHugePages" in line)


def test_tensors_are_their_own():
    shapes = [(3, 5), (), (7,), (2, 0, 3), (64, 64)]
    dtypes = [torch.bfloat16, torch.float32, torch.uint8]
    made = [memory.empty(shape, dtype) for shape in shapes for dtype in dtypes]
    for number, tensor in enumerate(made):
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0 or not tensor.numel()
        tensor.fill_(number)
    for number, tensor in enumerate(made):
        assert torch.equal(tensor, torch.full_like(tensor, number))


def test_weights_lie_side_by_side():
    one, other = memory.empty((1000,), torch.uint8), memory.empty((1000,), torch.uint8)
    distance = other.data_ptr() - one.data_ptr()
    # But where a chunk has just ended.
    assert (
        distance == 1024 or one.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
    )


def test_a_chunk_is_freed_with_its_last_tensor():
    large = memory.empty((100 << 20,), torch.uint8)
    storage = weakref.ref(large.untyped_storage())
    rest = memory.empty((16,), torch.uint8)
    del large, rest
    # The next chunk takes its place.
    kept = memory.empty((65 << 20,), torch.uint8)
    gc.collect()
    assert storage() is None
    assert kept.numel() == 65 << 20


@pytest.mark.parametrize("written", [False, True])
def test_pages_are_huge_where_the_system_gives_them(written):
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        if "[never]" in file.read():
            pytest.skip("this system gives no huge pages")
    before = huge_bytes()
    tensor = torch.empty(20 << 20, dtype=torch.uint8)
    if written:
        tensor.zero_()
    memory.use_huge_pages(tensor)
    tensor.fill_(7)
    assert tensor[:: 1 << 20].tolist() == [7] * 20
    # Memory may be in pieces; a neighbour's test may free some meanwhile.
    assert huge_bytes() >= before


def test_another_system_has_ordinary_memory(monkeypatch):
    monkeypatch.setattr(memory, "_madvise", lambda: None)
    memory.use_huge_pages(torch.empty(20 << 20, dtype=torch.uint8))
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *_: -1)
    memory.use_huge_pages(torch.empty(20 << 20, dtype=torch.uint8))
    memory.use_huge_pages(torch.empty(0))
