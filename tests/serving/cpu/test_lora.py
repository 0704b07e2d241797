"""What adapters add on a CPU, compared with float64, and that it depends on its own row alone."""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.cpu.lora import AdaptedRows, CpuLoRABackend, _NothingPinned

WIDTH, OUTPUTS, RANKS, SCALINGS = 96, (48, 16, 16), [0, 5, 8], [0.0, 2.0, 0.5]
OFFSETS = (0, 48, 64, 80)
PARTS, MAX_RANK = len(OUTPUTS), max(RANKS)


@pytest.fixture
def buffers() -> tuple[torch.Tensor, torch.Tensor]:
    """A pool of three slots; what lies beyond an adapter's rank is an earlier one's."""
    source = torch.Generator().manual_seed(20250918)
    a = torch.randn(len(RANKS), PARTS * MAX_RANK, WIDTH, generator=source)
    b = torch.randn(len(RANKS), sum(OUTPUTS), MAX_RANK, generator=source)
    return a, b


def adapted(backend, buffers, x, base):
    layer = SimpleNamespace()
    return backend.forward_with_base(layer, x, base.clone, *buffers, torch.tensor(OFFSETS), OFFSETS)


def reference(buffers, x, base, slots):
    a, b = (buffer.double() for buffer in buffers)
    out = base.double().clone()
    for row, slot in enumerate(slots):
        rank = RANKS[slot]
        for part in range(PARTS if rank else 0):
            narrow = a[slot, part * rank : (part + 1) * rank] @ x[row].double() * SCALINGS[slot]
            here = slice(OFFSETS[part], OFFSETS[part + 1])
            out[row, here] += b[slot, here, :rank] @ narrow
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_adapters_add(buffers, dtype):
    """Requests of several rows, neighbours with the same adapter, others with none."""
    source = torch.Generator().manual_seed(1)
    indices, lengths = [1, 0, 2, 2, 1], [3, 2, 4, 1, 1]
    x = torch.randn(sum(lengths), WIDTH, generator=source).to(dtype)
    base = torch.randn(len(x), sum(OUTPUTS), generator=source).to(dtype)
    buffers = tuple(buffer.to(dtype) for buffer in buffers)
    backend = CpuLoRABackend(3, torch.device("cpu"))
    backend.batch_info = AdaptedRows.of(lengths, indices, RANKS, SCALINGS)
    found = adapted(backend, buffers, x, base)
    slots = torch.tensor(indices).repeat_interleave(torch.tensor(lengths)).tolist()
    expected = reference(buffers, x, base, slots)
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    assert ((found.double() - expected).abs() <= tolerance * (expected.abs() + 1)).all()
    for row, slot in enumerate(slots):
        backend.batch_info = AdaptedRows.of([1], [slot], RANKS, SCALINGS)
        alone = adapted(backend, buffers, x[row : row + 1], base[row : row + 1])
        assert torch.equal(alone[0], found[row])


def test_another_adapter_moves_into_a_slot(buffers):
    backend = CpuLoRABackend(3, torch.device("cpu"))
    backend.batch_info = AdaptedRows.of([1], [1], RANKS, SCALINGS)
    x, base = torch.ones(1, WIDTH), torch.zeros(1, sum(OUTPUTS))
    before = adapted(backend, buffers, x, base)
    buffers[0][1] *= 2
    backend.forget({2})
    assert torch.equal(adapted(backend, buffers, x, base), before)
    backend.forget({1})
    assert torch.equal(adapted(backend, buffers, x, base), 2 * before)


def test_sums_over_ranks_come_before_the_second_product(buffers):
    backend = CpuLoRABackend(3, torch.device("cpu"))
    backend.batch_info = AdaptedRows.of([2], [2], RANKS, SCALINGS)
    x, base = torch.ones(2, WIDTH), torch.ones(2, sum(OUTPUTS))
    layer = SimpleNamespace()
    summed = backend.forward_with_base(
        layer, x, base.clone, *buffers, torch.tensor(OFFSETS), OFFSETS, all_reduce=lambda t: 2 * t
    )
    assert torch.allclose(summed, 2 * adapted(backend, buffers, x, base))


def test_experts_are_refused():
    experts = FusedMoE.__new__(FusedMoE)
    torch.nn.Module.__init__(experts)
    model = torch.nn.Sequential(experts)
    backend = CpuLoRABackend(1, torch.device("cpu"))
    backend.validate_lora_targets(model, {"q_proj"})
    with pytest.raises(FastMTPError, match=r"down_proj.*--lora-target-modules"):
        backend.validate_lora_targets(model, {"q_proj", "down_proj"})


def test_nothing_is_pinned():
    with _NothingPinned():
        assert not torch.tensor([1, 2], pin_memory=True).is_pinned()
        assert not torch.tensor([1, 2]).pin_memory().is_pinned()
