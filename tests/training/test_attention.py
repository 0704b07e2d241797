"""Attention of a draft chain against its definition: softmax over what each query may see.

Alone: pytest tests/training/test_attention.py
"""

from types import SimpleNamespace

import pytest
import torch
from transformers import AttentionInterface

from fastmtp_sglang.training import attention
from fastmtp_sglang.training.attention import CHAIN, ChainAttention, chain_attention

SEED = 20250918
STEPS, HEADS, KEY_HEADS, SIZE = 4, 4, 2, 8
SCALING = 0.3

# Step-1 rows of each document, and which of its positions start a chain.
DOCUMENTS = {
    "every position": [(5, [0, 1, 2, 3, 4]), (3, [0, 1, 2])],
    "answers only": [(9, [3, 4, 8]), (1, [0]), (7, [6])],
    "documents without a chain": [(4, []), (6, [2, 5]), (0, []), (2, [])],
    "more than one block": [(300, list(range(20, 300)))],
}


def step_inputs(rows: int, generator: torch.Generator) -> list[torch.Tensor]:
    """Query, key and value of one step, float64."""
    return [
        torch.randn(1, heads, rows, SIZE, dtype=torch.float64, generator=generator)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


def seen_by(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """[heads, size] of one query over keys [key heads, n, size], in plain softmax."""
    heads = []
    for head in range(HEADS):
        of = head // (HEADS // KEY_HEADS)
        weights = (SCALING * keys[of] @ query[head]).softmax(0)
        heads.append(weights @ values[of])
    return torch.stack(heads)


@pytest.mark.parametrize("layout", DOCUMENTS)
@pytest.mark.parametrize("block", [2, 128])
def test_each_query_sees_step_1_up_to_its_position_and_its_own_chain(monkeypatch, layout, block):
    monkeypatch.setattr(attention, "_BLOCK", block)
    documents = DOCUMENTS[layout]
    row_lengths = [rows for rows, _ in documents]
    starts = [sum(row_lengths[:i]) for i in range(len(documents))]
    anchors = [
        start + position
        for start, (_, of) in zip(starts, documents, strict=True)
        for position in of
    ]
    chain = ChainAttention(
        row_lengths, torch.tensor(anchors), [len(positions) for _, positions in documents]
    )
    generator = torch.Generator().manual_seed(SEED)
    steps = [step_inputs(sum(row_lengths), generator)]
    steps += [step_inputs(len(anchors), generator) for _ in range(STEPS - 1)]
    found = [chain.attend(*inputs, SCALING)[0] for inputs in steps]

    (first_query, first_key, first_value), *later = steps
    for start, rows in zip(starts, row_lengths, strict=True):
        # Of a long document these suffice: the mask is the same triangle everywhere.
        for row in range(start, start + rows, max(1, rows // 10)):
            expected = seen_by(
                first_query[0, :, row],
                first_key[0, :, start : row + 1],
                first_value[0, :, start : row + 1],
            )
            torch.testing.assert_close(found[0][row], expected)
    for number in range(0, len(anchors), max(1, len(anchors) // 10)):
        row = anchors[number]
        start = max(s for s, rows in zip(starts, row_lengths, strict=True) if s <= row and rows)
        keys, values = (side[0, :, start : row + 1] for side in (first_key, first_value))
        for step, (query, key, value) in enumerate(later, 1):
            keys = torch.cat((keys, key[0, :, number : number + 1]), dim=1)
            values = torch.cat((values, value[0, :, number : number + 1]), dim=1)
            expected = seen_by(query[0, :, number], keys, values)
            torch.testing.assert_close(found[step][number], expected)


def test_transformers_calls_it_by_its_name():
    assert AttentionInterface()[CHAIN] is chain_attention


@pytest.mark.parametrize("option", [{"dropout": 0.1}, {"sliding_window": 128}])
def test_what_no_head_is_served_with_is_refused(option):
    attend = SimpleNamespace(window=None, attend=lambda *_: pytest.fail("attended"))
    nothing = torch.empty(1, 1, 0, 1)
    with pytest.raises(ValueError, match="no chain attention with"):
        chain_attention(
            torch.nn.Identity(), nothing, nothing, nothing, None,
            scaling=1.0, chain=attend, **option,
        )  # fmt: skip
