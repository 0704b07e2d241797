"""Which shapes are chosen among.

Alone: pytest tests/serving/adaptive/test_shapes.py
"""

import itertools

import pytest

from fastmtp_sglang.contract.tree_shape import MAX_TOP_K, PLAIN, TreeShape
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.adaptive.shapes import candidate_shapes


@pytest.mark.parametrize(
    ("largest", "shapes"),
    [
        ("1x1", ["1x1x2"]),
        ("3x1", ["1x1x2", "2x1x3", "3x1x4"]),
        ("3x8x16", ["1x1x2", "2x1x3", "3x1x4", "1x8x8", "2x8x4", "2x8x8", "2x8x16", "3x8x16"]),
        ("3x4x12", ["1x1x2", "2x1x3", "3x1x4", "1x4x5", "2x4x3", "2x4x6", "2x4x12", "3x4x12"]),
        ("1x4", ["1x1x2", "1x4x5"]),
    ],
)
def test_shapes(largest, shapes):
    found = candidate_shapes(TreeShape.parse(largest))
    assert list(map(str, found)) == ["0x1x1", *shapes]


def test_all_are_within_the_largest_and_of_its_top_k():
    for steps, top_k, rows in itertools.product(range(1, 9), range(1, MAX_TOP_K + 1), range(2, 65)):
        try:
            largest = TreeShape(steps, top_k, rows)
        except FastMTPError:
            continue
        found = candidate_shapes(largest)
        assert (found[0], found[-1]) == (PLAIN, largest)
        assert len(set(found)) == len(found) <= steps + 7
        assert all(shape.is_within(largest) for shape in found)
        assert {shape.top_k for shape in found} == {1, top_k}
