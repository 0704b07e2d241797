"""How well a head drafts: teacher-forced on held-out text, and free-running as serving runs it.

Free-running, the head starts at the target's hidden state and reads its own drafts. Its chain is
compared with the target's greedy continuation by walking over it as a server does: a draft ends at
the first wrong token, the target adds one token of its own, the next draft starts behind it. Greedy
speculative decoding is lossless, so this is the acceptance that serving measures, except that
drafts which would reach past the last token of a continuation are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from fastmtp_sglang.training.model import Output
from fastmtp_sglang.training.packing import Document, pack

_DOCUMENTS_PER_FORWARD = 16


@dataclass(frozen=True)
class FreeRunning:
    """Acceptance over all drafts of a walk.

    Attributes:
        accepted: for each step k, the share of drafts whose first k tokens were all accepted.
        length: tokens gained by one verification, the target's own included: 1 + sum(accepted).
        drafts: how many drafts this is measured on.
    """

    accepted: list[float]
    length: float
    drafts: int


@dataclass(frozen=True)
class TeacherForced:
    """Per step: mean loss, and the share of held-out tokens that score highest.

    The loss is over the tokens of the output layer that was trained with; the share is over all.
    """

    loss: list[float]
    accepted: list[float]


@torch.no_grad()
def teacher_forced(
    head: torch.nn.Module, documents: Sequence[Document], output: Output, num_steps: int
) -> TeacherForced:
    """Measure on text. `head` is a `ChainHead`, maybe wrapped; `output` is what it trains with."""
    sums = torch.zeros(num_steps, dtype=torch.float64)
    correct, counts, everything = torch.zeros(3, num_steps, dtype=torch.int64)
    for group in _batches(documents):
        everything += pack(group, num_steps)["counts"]
        batch = pack([output.to_train(document) for document in group], num_steps)
        found = head(**_to(batch, output.device))
        sums += found["sums"].cpu()
        correct += found["correct"].cpu()
        counts += batch["counts"]
    return TeacherForced(
        (sums / counts.clamp(min=1)).tolist(), (correct / everything.clamp(min=1)).tolist()
    )


@torch.no_grad()
def free_running(
    head: torch.nn.Module, documents: Sequence[Document], output: Output, num_steps: int
) -> FreeRunning:
    """Walk over greedy continuations (`greedy.greedy_continuations`), drafting with `output`."""
    lengths: list[int] = []
    for group in _batches(documents):
        with_lists = [output.with_lists(document) for document in group]
        batch = _to(pack(with_lists, num_steps), output.device)
        matches = leading_matches(batch, head(draft_with=output, **batch)["drafts"])
        for document, accepted in zip(group, matches, strict=True):
            lengths += walk(document, accepted, num_steps)
    accepted_lengths = torch.tensor(lengths, dtype=torch.int64)
    shares = [
        (accepted_lengths >= step).double().mean().item() if lengths else 0.0
        for step in range(1, num_steps + 1)
    ]
    return FreeRunning(shares, 1 + sum(shares), len(lengths))


def leading_matches(batch: dict[str, torch.Tensor], drafts: torch.Tensor) -> list[dict[int, int]]:
    """For each document: position of an anchor -> how many of its first drafts are the text's.

    Args:
        batch: of `packing.pack`.
        drafts: int64 [K, N]; tokens past the end of a document count as wrong.
    """
    ids, anchors = batch["input_ids"], batch["rows"][batch["anchors"]]
    ends = batch["lengths"].cumsum(0).repeat_interleave(batch["anchor_lengths"])
    steps = torch.arange(1, len(drafts) + 1, device=ids.device).unsqueeze(1)
    labels = anchors + steps + 1
    matches = (labels < ends) & (drafts == ids[labels.clamp(max=len(ids) - 1)])
    leading = matches.long().cumprod(0).sum(0).cpu()
    positions = batch["positions"][batch["anchors"]].cpu()
    sizes = batch["anchor_lengths"].tolist()
    return [
        dict(zip(own.tolist(), correct.tolist(), strict=True))
        for own, correct in zip(positions.split(sizes), leading.split(sizes), strict=True)
    ]


def walk(document: Document, accepted: dict[int, int], num_steps: int) -> list[int]:
    """Accepted drafts of each verification over one continuation.

    The first draft starts at the last prompt position: its next token is already known there.
    """
    position = int(document.counted.nonzero()[0]) - 1
    found = []
    while position + num_steps + 1 < len(document.input_ids):
        found.append(accepted[position])
        position += accepted[position] + 1
    return found


def _batches(documents: Sequence[Document]) -> Iterator[Sequence[Document]]:
    for start in range(0, len(documents), _DOCUMENTS_PER_FORWARD):
        yield documents[start : start + _DOCUMENTS_PER_FORWARD]


def _to(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in batch.items()}
