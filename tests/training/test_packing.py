"""Which token each step of each chain is trained on.

Alone: pytest tests/training/test_packing.py
"""

import pytest
import torch

from fastmtp_sglang.training.packing import Document, pack


def document(first_id: int, mask: str) -> Document:
    """Tokens first_id, first_id + 1, ...; those at `A` count."""
    counted = torch.tensor([letter == "A" for letter in mask], dtype=torch.bool)
    return Document(first_id + torch.arange(len(mask)), counted)


def trained(documents: list[Document], num_steps: int) -> list[set[tuple[int, int]]]:
    """Of each step: (token that the anchor's step 1 reads, label), by ids."""
    batch = pack(documents, num_steps)
    ids, at_anchor = batch["input_ids"], batch["rows"][batch["anchors"]]
    found = []
    for rows in batch["label_rows"]:
        chosen = rows >= 0
        anchors = at_anchor[rows[chosen]]
        labels = batch["labels"][chosen]
        found.append(set(zip(ids[anchors + 1].tolist(), ids[labels].tolist(), strict=True)))
    assert [len(pairs) for pairs in found] == batch["counts"].tolist()
    return found


def by_definition(documents: list[Document], num_steps: int) -> list[set[tuple[int, int]]]:
    """Step k at t reads x_{t+1} first and predicts x_{t+k+1}, inside its document."""
    found: list[set[tuple[int, int]]] = [set() for _ in range(num_steps)]
    for item in documents:
        ids, counted = item.input_ids.tolist(), item.counted.tolist()
        for step in range(1, num_steps + 1):
            for t in range(len(ids)):
                if t + step + 1 < len(ids) and counted[t + step + 1]:
                    found[step - 1].add((ids[t + 1], ids[t + step + 1]))
    return found


@pytest.mark.parametrize(
    "masks",
    [
        ["PPPPAAAA"],
        ["PPAAPPPAAP", "AAAA", "PPPP", "PA"],
        ["A", "", "AA", "AAA", "PAA"],
        ["PPAPAPPPPPPA", "PPPPPPPPA"],
    ],
)
@pytest.mark.parametrize("num_steps", [1, 3, 5])
def test_labels_are_the_definition(masks, num_steps):
    documents = [document(1000 * i, mask) for i, mask in enumerate(masks)]
    assert trained(documents, num_steps) == by_definition(documents, num_steps)


def test_turn_boundaries_at_every_step():
    """Two turns: tokens 4, 5 and 9, 10 are answers. Steps count these and no others."""
    (first, second, third) = trained([document(0, "PPPPAAPPPAA")], 3)
    assert {label for _, label in first} == {4, 5, 9, 10}
    assert {label for _, label in second} == {4, 5, 9, 10}
    assert {label for _, label in third} == {4, 5, 9, 10}
    # The anchor lies one further back with each step.
    assert (3, 4) in first
    assert (2, 4) in second
    assert (1, 4) in third


def test_short_documents_contribute_what_they_can():
    assert [len(found) for found in trained([document(0, "AAA")], 3)] == [1, 0, 0]
    assert [len(found) for found in trained([document(0, "AAAA")], 3)] == [2, 1, 0]
    assert [len(found) for found in trained([document(0, "AA")], 3)] == [0, 0, 0]


def test_rows_end_with_the_last_anchor():
    """What no chain needs is not computed."""
    batch = pack([document(0, "PPAAPPPPPP"), document(50, "PPPP")], 3)
    assert batch["row_lengths"].tolist() == [2, 0]
    assert batch["anchor_lengths"].tolist() == [2, 0]
    assert batch["positions"].tolist() == [0, 1]
