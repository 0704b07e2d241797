"""Slots moved on natively against the definition in torch; the texts state their seed.

Alone: pytest tests/serving/cpu/native/test_routes.py
"""

import pytest
from routed_texts import compare_with_torch

from fastmtp_sglang.serving.cpu.ops import advance_routes


@pytest.mark.parametrize(("width", "runs"), [(4, 10), (7, 10), (1, 40)])
def test_equals_torch_while_texts_change_their_language(width: int, runs: int):
    compare_with_torch(advance_routes, width, runs)


def test_equals_torch_without_own_tokens():
    compare_with_torch(advance_routes, width=4, runs=10, own_tokens=0)
