"""Rows of several buffers moved at once, as if all were read first.

Alone: pytest tests/serving/cpu/native/test_moves.py
"""

import numpy as np
import pytest

from fastmtp_sglang.serving.cpu.native.moves import move

SLOTS = 9


def moved(buffers: list[np.ndarray], targets: list[int], sources: list[int]) -> None:
    move(
        np.array([buffer.ctypes.data for buffer in buffers]),
        np.array([buffer.strides[0] for buffer in buffers]),
        np.array(targets, dtype=np.int64),
        np.array(sources, dtype=np.int64),
    )


@pytest.mark.parametrize(
    ("targets", "sources"),
    [
        ([3], [5]),
        ([1, 2], [2, 1]),
        ([0, 1, 2, 3], [1, 2, 3, 4]),
        ([4, 3, 2, 1], [3, 2, 1, 0]),
        ([7, 8], [2, 2]),
        ([5, 5 - 1], [5, 6]),
        ([], []),
    ],
    ids=["one", "swapped", "down", "up", "one to two", "one stays", "none"],
)
def test_all_are_read_before_one_is_written(targets, sources):
    """In buffers of different widths and types, keys and values of different layers."""
    buffers = [
        np.arange(SLOTS * 5, dtype=np.float32).reshape(SLOTS, 5),
        np.arange(SLOTS * 3, dtype=np.uint16).reshape(SLOTS, 3),
        np.arange(SLOTS, dtype=np.uint16).reshape(SLOTS, 1),
    ]
    expected = [buffer.copy() for buffer in buffers]
    for buffer in expected:
        buffer[targets] = buffer[sources]
    moved(buffers, targets, sources)
    for buffer, wanted in zip(buffers, expected, strict=True):
        np.testing.assert_array_equal(buffer, wanted)
