"""Shapes of drafts: what they are called and how many drafts they have. Refusals: test_limits.py.

Alone: pytest tests/contract/test_tree_shape.py
"""

import pytest

from fastmtp_kernels.draft_logits import MAX_TOP_K
from fastmtp_sglang.contract import tree_shape
from fastmtp_sglang.contract.tree_shape import TreeShape, parse_shapes
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


def test_shapes_between_commas():
    shapes = parse_shapes("--shapes", "3x1, 3x8x16,3x8,3x4x12")
    assert [str(shape) for shape in shapes] == ["3x1x4", "3x8x16", "3x4x12"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3x1,", "--shapes 3x1,: '' is no shape: write K x top-k x rows"),
        ("3x1,3x8x99", "--shapes 3x1,3x8x99: --speculative-num-draft-tokens 99 is too large"),
        ("0x1", "--shapes 0x1: --speculative-num-steps 0 must be at least 1"),
        ("3x9", "--shapes 3x9: --speculative-eagle-topk 9 must be 1 .* to 8"),
    ],
)
def test_one_that_is_no_shape_is_named_with_its_flag(text, message):
    with pytest.raises(FastMTPError, match=message):
        parse_shapes("--shapes", text)


def test_the_kernel_finds_as_many_tokens_as_a_tree_may_have_branches():
    assert tree_shape.MAX_TOP_K == MAX_TOP_K
