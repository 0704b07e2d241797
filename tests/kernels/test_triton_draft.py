"""The launcher, up to the launch itself: arguments bind, compile for an H100, and then stay warm.

The driver is a stand-in that knows no GPU but its name, and launches are turned into compilations;
everything before that is what runs on a GPU.
"""

from __future__ import annotations

import pytest
import torch
import triton
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastmtp_kernels import draft_tiles
from fastmtp_kernels.draft_logits import DraftOptions
from fastmtp_kernels.slots import DraftSlots
from fastmtp_kernels.triton_draft import TritonDraftLogits

pytestmark = pytest.mark.skipif(
    triton.knobs.runtime.interpret, reason="TRITON_INTERPRET=1 replaces the launcher"
)


class StandInDriver:
    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch):
    """Names of the kernels launched, and their number of compiled variants."""
    names: list[str] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        names.append(self.__name__)
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    monkeypatch.setattr(JITFunction, "run", compile_only)
    kernels = (draft_tiles.score_tiles, draft_tiles.reduce_tiles)
    for kernel in kernels:
        monkeypatch.setattr(
            kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder)
        )
    monkeypatch.setattr(driver, "_active", StandInDriver())

    def count() -> tuple[int, int]:
        return len(names), sum(len(kernel.device_caches[0][0]) for kernel in kernels)

    return count


@pytest.mark.parametrize(
    "options",
    [DraftOptions(), DraftOptions(fallback_id=1, top_k=2, log_sum_exp=True, softcap=30.0)],
    ids=["plain", "everything"],
)
@pytest.mark.parametrize(("size", "own"), [(1, 0), (64, 0), (64, 128)])
def test_after_warm_up_no_batch_compiles(size: int, own: int, options: DraftOptions, launches):
    slots = DraftSlots.build({"en": range(0, 300, 2), "all": range(300)}, 300)
    head = torch.zeros(300, size, dtype=torch.bfloat16)
    own_ids = torch.zeros(4, 2, own, dtype=torch.int32) if own else None
    draft_logits = TritonDraftLogits(head, slots, options, own_ids)
    draft_logits.warm_up()
    launched, variants = launches()
    assert variants >= 4, (
        "two kernels, the first for several batch sizes, the second also for ranks"
    )
    for batch in range(1, 257):
        languages = torch.zeros(batch + 1, dtype=torch.int64)[1:]  # an unaligned view
        found = draft_logits(head.new_zeros(batch, size), languages, languages)
        assert found.ids.shape == (batch, options.top_k)
    for ranks in (2, 8, 16):
        keys = found.keys.expand(ranks, -1, -1)
        lse = None if found.log_sum_exp is None else found.log_sum_exp.expand(ranks, -1)
        draft_logits.merge(keys, lse)
    assert launches() == (launched + 2 * 256 + 3, variants)
