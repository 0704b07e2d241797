"""The parent of each row out of first children and next siblings; trees are random from SEED.

Alone: pytest tests/serving/verification/test_tree_links.py
"""

import random

import pytest
import torch

from fastmtp_sglang.contract.tree_shape import MAX_TOP_K
from fastmtp_sglang.serving.verification.tree_links import parents

SEED = 20250918


def links(of: list[int]) -> tuple[list[int], list[int]]:
    """First child and next sibling of each row, of rows whose parents are given."""
    child, sibling = [-1] * len(of), [-1] * len(of)
    last: dict[int, int] = {}
    for row, parent in enumerate(of):
        if parent < 0:
            continue
        if parent in last:
            sibling[last[parent]] = row
        else:
            child[parent] = row
        last[parent] = row
    return child, sibling


def found(*trees: list[int]) -> list[list[int]]:
    child, sibling = zip(*map(links, trees), strict=True)
    return parents(torch.tensor(child), torch.tensor(sibling)).tolist()


def test_a_chain_and_a_lone_root():
    assert found([-1, 0, 1, 2]) == [[-1, 0, 1, 2]]
    assert found([-1]) == [[-1]]


def test_as_many_siblings_as_there_may_be():
    """The last of them is the farthest from the row that its parent names."""
    siblings = [-1, *[0] * MAX_TOP_K, *[3] * MAX_TOP_K]
    assert found(siblings) == [siblings]


def test_a_row_that_nothing_leads_to():
    """Of equally likely paths SGLang may verify a draft without its parent."""
    assert found([-1, 0, -1, 0, 2]) == [[-1, 0, -1, 0, 2]]


@pytest.mark.parametrize("rows", [2, 9, 64])
def test_any_tree(rows):
    rng = random.Random(SEED + rows)
    trees = []
    for _ in range(20):
        children = [0] * rows
        tree = [-1]
        for row in range(1, rows):
            free = [parent for parent in range(row) if children[parent] < MAX_TOP_K]
            tree.append(rng.choice([*free, -1]))
            children[tree[-1]] += tree[-1] >= 0
        trees.append(tree)
    assert found(*trees) == trees
