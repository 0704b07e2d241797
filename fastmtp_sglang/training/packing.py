"""Documents packed end to end into one batch without padding, and the chains that it trains.

A document is a token sequence x_0..x_{T-1} and a mask of the tokens that count. Step k of the
chain at anchor t predicts x_{t+k+1} (`head.module`), so a counted token at position l is the label
of step k at anchor t = l - k - 1, if that is a position of the same document. A chain that would
start before its document, or end after it, has no label: nothing wraps around, crosses into the
next document or meets a filler.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Document:
    """One token sequence.

    Attributes:
        input_ids: int64 [T], at least one.
        counted: bool [T], the tokens whose prediction is trained.
        hidden_states: [T, D] of the target after its final norm; None where it runs online.
        lists: int64 [T], the list that each token is drafted from (`own_lists`); None for one.
    """

    input_ids: torch.Tensor
    counted: torch.Tensor
    hidden_states: torch.Tensor | None = None
    lists: torch.Tensor | None = None


def pack(documents: Sequence[Document], num_steps: int) -> dict[str, torch.Tensor]:
    """Pack documents into the keyword arguments of `ChainHead.forward`.

    S is the number of tokens, R of step-1 rows (each document up to its last anchor), N of anchors,
    L of labels, n of documents; documents without a label have 0 rows.

    Returns:
        input_ids: int64 [S].
        lengths: int64 [n].
        rows: int64 [R], flat positions of the step-1 rows.
        positions: int64 [R], their positions in their documents.
        row_lengths: int64 [n].
        anchors: int64 [N], indices into `rows`, ascending.
        anchor_lengths: int64 [n].
        labels: int64 [L], flat positions of the counted tokens that some chain predicts.
        label_rows: int64 [num_steps, L], index of the anchor whose step k predicts it, or -1.
        counts: int64 [num_steps], labels of each step.
        hidden_states: [S, D], if the documents hold them.
        label_lists, anchor_lists: int64 [L] and [N], if the documents hold lists: of each label,
            and of the first token that each anchor's chain drafts.
    """
    rows, positions, anchors, labels, label_rows = [], [], [], [], []
    label_lists, anchor_lists = [], []
    row_lengths, anchor_lengths = [], []
    start, row_start, anchor_start = 0, 0, 0
    steps = torch.arange(1, num_steps + 1).unsqueeze(1)
    for document in documents:
        # Even step 1 needs a hidden state and a token before its label.
        own = document.counted.nonzero().squeeze(1)
        own = own[own >= 2]
        starts = own - steps - 1
        valid = starts >= 0
        own_anchors, index = torch.unique(starts[valid], return_inverse=True)
        length = int(own_anchors[-1]) + 1 if len(own_anchors) else 0
        own_rows = torch.full_like(starts, -1)
        own_rows[valid] = index + anchor_start
        positions.append(torch.arange(length))
        rows.append(positions[-1] + start)
        anchors.append(own_anchors + row_start)
        labels.append(own + start)
        label_rows.append(own_rows)
        if document.lists is not None:
            label_lists.append(document.lists[own])
            anchor_lists.append(document.lists[own_anchors + 2])
        row_lengths.append(length)
        anchor_lengths.append(len(own_anchors))
        start += len(document.input_ids)
        row_start += length
        anchor_start += len(own_anchors)
    if not anchor_start:
        # Nothing to learn here. One idle chain keeps every shape positive, and gives every
        # parameter the gradient of zero that other ranks wait for.
        rows, positions, anchors = ([torch.zeros(1, dtype=torch.int64)] for _ in range(3))
        row_lengths[0] = anchor_lengths[0] = 1
        anchor_lists = [torch.zeros(1, dtype=torch.int64)] * bool(anchor_lists)
    table = torch.cat(label_rows, dim=1)
    batch = {
        "input_ids": torch.cat([document.input_ids for document in documents]),
        "lengths": torch.tensor([len(document.input_ids) for document in documents]),
        "rows": torch.cat(rows),
        "positions": torch.cat(positions),
        "row_lengths": torch.tensor(row_lengths),
        "anchors": torch.cat(anchors),
        "anchor_lengths": torch.tensor(anchor_lengths),
        "labels": torch.cat(labels),
        "label_rows": table,
        "counts": (table >= 0).sum(1),
    }
    states = [d.hidden_states for d in documents if d.hidden_states is not None]
    if states:
        batch["hidden_states"] = torch.cat(states)
    if label_lists:
        batch["label_lists"] = torch.cat(label_lists)
        batch["anchor_lists"] = torch.cat(anchor_lists)
    return batch
