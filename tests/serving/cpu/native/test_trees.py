"""Links of drafts that are verified, and the way of the target through them, in small trees.

Against trees of Python objects, at random, in tests/serving/cpu/test_tree.py.
Alone: pytest tests/serving/cpu/native/test_trees.py
"""

import numpy as np

from fastmtp_sglang.serving.cpu.native.trees import follow, link


def linked(numbers, chosen, lengths, topk):
    requests, n = len(chosen), len(chosen[0]) + 1
    mask = np.ones((requests, n, n), dtype=bool)
    tables = [np.full((requests, n), -7) for _ in range(4)]
    as_integers = [np.array(values, dtype=np.int64) for values in (numbers, chosen, lengths)]
    link(*as_integers, mask, *tables, topk)
    return mask, *tables


def test_two_requests_with_other_trees():
    """Top-k 2: drafts 0 and 1 follow the root, 2 and 3 the first of them, 4 and 5 the second."""
    numbers = [[-1, 0, 1]] * 2
    mask, positions, index, child, sibling = linked(
        numbers, [[0, 1, 2, 3], [0, 1, 4, 5]], [10, 0], 2
    )
    assert index.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert positions.tolist() == [[10, 11, 11, 12, 12], [0, 1, 1, 2, 2]]
    assert child.tolist() == [[1, 3, -1, -1, -1], [1, -1, 3, -1, -1]]
    assert sibling.tolist() == [[-1, 2, -1, 4, -1]] * 2
    assert mask[0, 4].tolist() == [True, True, False, False, True]
    assert mask[1, 4].tolist() == [True, False, True, False, True]


def test_more_than_two_siblings_are_a_line():
    _, _, _, child, sibling = linked([[-1]], [[0, 1, 3]], [4], 4)
    assert child.tolist() == [[1, -1, -1, -1]]
    assert sibling.tolist() == [[-1, 2, 3, -1]]


def test_the_root_alone():
    """A step without drafts."""
    mask, positions, index, child, sibling = linked([[-1]], [[]], [6], 1)
    assert (positions.tolist(), index.tolist(), mask.tolist()) == ([[6]], [[0]], [[[True]]])
    assert child.tolist() == sibling.tolist() == [[-1]]


def followed(candidates, target, child, sibling, depth):
    """Numbers of accepted rows and accepted drafts of one request."""
    accepted = np.full((1, depth), -7, dtype=np.int32)
    count = np.full(1, -7, dtype=np.int32)
    rows = np.arange(len(candidates)) + 100
    lines = [np.array([values]) for values in (candidates, target, rows, child, sibling)]
    follow(*lines, accepted, count)
    return accepted[0].tolist(), int(count[0])


# Rows 1 and 2 follow the root, row 3 follows row 2, row 4 follows row 3.
CHILD, SIBLING = [1, -1, 3, 4, -1], [-1, 2, -1, -1, -1]
TOKENS = [5, 6, 7, 8, 9]


def test_the_target_is_followed_to_the_end():
    assert followed(TOKENS, [7, 0, 8, 9, 1], CHILD, SIBLING, 4) == ([100, 102, 103, 104], 3)


def test_it_is_left_at_the_first_draft_that_is_wrong():
    assert followed(TOKENS, [7, 0, 1, 9, 1], CHILD, SIBLING, 4) == ([100, 102, -1, -1], 1)
    assert followed(TOKENS, [1, 0, 8, 9, 1], CHILD, SIBLING, 4) == ([100, -1, -1, -1], 0)


def test_no_more_is_accepted_than_there_is_room_for():
    """Another K may have drafted more than this step's outputs hold."""
    assert followed(TOKENS, [7, 0, 8, 9, 1], CHILD, SIBLING, 2) == ([100, 102], 1)
    assert followed(TOKENS, [7, 0, 8, 9, 1], CHILD, SIBLING, 1) == ([100], 0)


def test_of_equal_siblings_the_first_is_taken():
    assert followed([5, 6, 6], [6, 0, 0], [1, -1, -1], [-1, 2, -1], 3) == ([100, 101, -1], 1)
