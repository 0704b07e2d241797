"""Weights in panels: where each number lies, and that none is lost.

Alone: pytest tests/serving/cpu/native/test_packing.py
"""

import pytest
import torch

from fastmtp_sglang.serving.cpu.native.emitter import PANEL
from fastmtp_sglang.serving.cpu.native.packing import Packed

SEED = 20250918
DTYPES = [torch.float32, torch.bfloat16]
# (outputs, inputs): below, between and beyond whole panels, odd inputs among them.
SHAPES = [(1, 1), (1, 7), (7, 33), (33, 7), (64, 129), (130, 1000), (192, 576)]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED + seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unpacking_gives_the_weight_back(shape, dtype):
    weight = random(*shape, seed=8, dtype=dtype)
    assert torch.equal(Packed.of(weight).rows(), weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_where_a_weight_lies(dtype):
    """Panel by panel of outputs, in it input by input; of bfloat16 two inputs side by side."""
    outputs, inputs = PANEL + 3, 5
    weight = torch.arange(1.0, outputs * inputs + 1).view(outputs, inputs).to(dtype)
    panels = Packed.of(weight).panels
    together = 2 if dtype == torch.bfloat16 else 1
    assert panels.shape == (2, -(-inputs // together), PANEL, together)
    for output, i in ((0, 0), (1, 4), (PANEL - 1, 3), (PANEL, 2), (PANEL + 2, 4)):
        place = (output // PANEL, i // together, output % PANEL, i % together)
        assert panels[place] == weight[output, i]


def test_what_fills_panels_up_is_zeros():
    """Else a NaN of old memory would reach a product's last row or input."""
    packed = Packed.of(torch.ones(PANEL + 1, 3, dtype=torch.bfloat16))
    assert packed.panels.sum() == 3 * (PANEL + 1)


def test_a_transposed_weight():
    weight = random(40, 9, seed=9)
    assert torch.equal(Packed.of(weight.T).rows(), weight.T)
