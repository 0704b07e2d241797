"""Shapes of drafts: what they are called and how many drafts they have. Refusals: test_limits.py.

Alone: pytest tests/contract/test_tree_shape.py
"""

import pytest

from fastmtp_kernels.draft_logits import MAX_TOP_K
from fastmtp_sglang.contract import tree_shape
from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.errors import FastMTPError


@pytest.mark.parametrize(
    ("text", "shape", "drafts"),
    [
        ("3x1", (3, 1, 4), 3),
        ("1x1x2", (1, 1, 2), 1),
        ("3x8x16", (3, 8, 16), 8 + 64 + 64),
        ("3x8", (3, 8, 16), 8 + 64 + 64),
        ("1x4", (1, 4, 5), 4),
        ("2x2", (2, 2, 7), 2 + 4),
        ("5x8x48", (5, 8, 48), 8 + 4 * 64),
    ],
)
def test_shapes(text, shape, drafts):
    parsed = TreeShape.parse(text)
    assert (parsed.num_steps, parsed.top_k, parsed.num_rows) == shape
    assert parsed.num_drafts == drafts
    assert TreeShape.parse(str(parsed)) == parsed


@pytest.mark.parametrize("text", ["", "3", "3x", "ax1", "3x4x12x1", "3 x 4"])
def test_what_is_no_shape(text):
    with pytest.raises(FastMTPError, match="is no shape"):
        TreeShape.parse(text)


def test_the_kernel_finds_as_many_tokens_as_a_tree_may_have_branches():
    assert tree_shape.MAX_TOP_K == MAX_TOP_K
