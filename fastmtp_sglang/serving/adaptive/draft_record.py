"""What a tree drafted, besides the rows that were verified, and what followed.

The drafts of a tree of K steps include those of every tree of the same top-k with fewer steps, and
each shape verifies the likeliest of its own. So with the probabilities of all paths, and the tokens
that followed, the host can tell how many drafts a smaller shape would have had accepted, or one
with more rows. A shape is followed as far as the text is known: the accepted drafts and one token.

SGLang keeps neither the probabilities nor the drafts that are not verified. They are stored, by
request slot, where it puts the drafts together; in a CUDA graph too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.serving.adaptive.acceptance import Seen
from fastmtp_sglang.serving.host_copy import HostCopy


class DraftRecord:
    """All drafts of the latest step of each request slot.

    Attributes:
        slots: int64 [B], request slots of the draft under way.
    """

    def __init__(self, largest: TreeShape, num_slots: int, device: torch.device | str) -> None:
        """Make room for the drafts of the largest tree; smaller ones have the same top-k."""
        self._top_k = largest.top_k
        drafts, families = largest.num_drafts, _num_families(largest)
        self._scores = torch.zeros(num_slots, drafts, dtype=torch.float32, device=device)
        self._tokens = torch.zeros(num_slots, drafts, dtype=torch.int64, device=device)
        self._parents = torch.zeros(num_slots, families, dtype=torch.int64, device=device)
        self.slots: Tensor | None = None

    def keeping(self, organize: Callable[..., Any]) -> Callable[..., Any]:
        """SGLang's `organize_draft_results`, which chooses what is verified, with a record."""

        def organize_draft_results(
            score_list: list[Tensor],
            token_list: list[Tensor],
            parents_list: list[Tensor],
            num_draft_token: int,
        ) -> Any:
            if token_list[0].shape[1] == self._top_k:
                self.keep(score_list, token_list, parents_list)
            return organize(score_list, token_list, parents_list, num_draft_token)

        return organize_draft_results

    def keep(self, scores: list[Tensor], tokens: list[Tensor], parents: list[Tensor]) -> None:
        """Store the drafts of `slots`, each list an entry a step.

        Args:
            scores: float32 [B, ...], probabilities of the paths to k, then k * k drafts.
            tokens: int64 [B, k], then [B, k * k].
            parents: int64 [B, k + 1], then [B, k]: the numbers of the drafts that the next step
                goes on from, the first of them unused.
        """
        for kept, parts in (
            (self._scores, [part.flatten(1) for part in scores]),
            (self._tokens, tokens),
            (self._parents, parents[:-1]),
        ):
            if parts:
                whole = torch.cat(parts, dim=1)
                kept[self.slots, : whole.shape[1]] = whole

    def take(
        self,
        shape: TreeShape,
        requests: Sequence[str],
        slots: Tensor,
        decided: Tensor,
        accept_lens: Tensor,
    ) -> Drafted:
        """Copy what the step that was just verified drafted.

        Args:
            shape: that was drafted.
            requests: their names.
            slots: int64 [B].
            decided: integer [B * rows]; the accepted drafts of each request and one token more
                stand at the beginning of its part.
            accept_lens: integer [B], how many these are.
        """
        drafts, families = shape.num_drafts, _num_families(shape)
        followed = decided.view(len(requests), -1)[:, : shape.num_steps + 1]
        copies = (
            self._scores[slots, :drafts],
            self._tokens[slots, :drafts],
            self._parents[slots, :families],
            followed,
            accept_lens,
        )
        return Drafted(shape, list(requests), *(HostCopy.start(tensor) for tensor in copies))


class Drafted(NamedTuple):
    """The drafts of one step, on their way to the host; see `DraftRecord.take`."""

    shape: TreeShape
    requests: list[str]
    scores: HostCopy
    tokens: HostCopy
    parents: HostCopy
    followed: HostCopy
    lengths: HostCopy

    def seen(
        self, emitted: Mapping[str, int], shapes: Iterable[TreeShape]
    ) -> dict[TreeShape, Seen]:
        """What each of the shapes would have had accepted.

        Args:
            emitted: accepted drafts that clients got, by request; others had ended before. Drafts
                behind the end of an answer count as rejected.
            shapes: trees of the same top-k, and chains, all of as many steps at most.
        """
        here = [row for row, name in enumerate(self.requests) if name in emitted]
        scores, tokens, parents, followed, lengths = (
            copy.wait().numpy()[here]
            for copy in (self.scores, self.tokens, self.parents, self.followed, self.lengths)
        )
        got = np.array([emitted[self.requests[row]] for row in here], dtype=np.int64)
        # What the answer's end cut off is as good as wrong.
        limits = np.where(got < lengths - 1, got, self.shape.num_steps)
        path = _right_path(self.shape, tokens, parents, followed, lengths)
        reached = np.take_along_axis(scores, path.numbers.clip(0), axis=1)
        seen = {}
        for shape in shapes:
            steps = shape.num_steps
            if shape.top_k == 1:
                verified, known = path.is_chain, path.chain_known
            else:
                likelier = scores[:, None, : shape.num_drafts] > reached[:, :, None]
                verified, known = likelier.sum(2) < shape.num_rows - 1, np.full(len(here), steps)
            kept = (verified & (path.numbers >= 0))[:, :steps]
            accepted = np.minimum(kept.cumprod(axis=1).sum(axis=1), limits)
            # Behind a draft that was right and not verified nothing is known.
            known = np.where(accepted < lengths, known, np.minimum(known, accepted))
            seen[shape] = Seen(accepted.tolist(), known.tolist())
        return seen


class _Path(NamedTuple):
    """The drafts that were right, one after the other, of b requests.

    Attributes:
        numbers: int64 [b, K], their numbers among all drafts, -1 behind the last one.
        is_chain: bool [b, K], whether it and all before it were the likeliest of their siblings.
        chain_known: int64 [b], up to which step the likeliest of siblings are known.
    """

    numbers: np.ndarray
    is_chain: np.ndarray
    chain_known: np.ndarray


def _right_path(
    shape: TreeShape,
    tokens: np.ndarray,
    parents: np.ndarray,
    followed: np.ndarray,
    lengths: np.ndarray,
) -> _Path:
    """Follow the text through the drafts.

    Drafts are numbered step by step; family f are the top-k drafts from f * top-k on, children of
    the draft that the f-th entry of `parents` names, or of the last token for f = 0.
    """
    count, steps, top_k = len(tokens), shape.num_steps, shape.top_k
    numbers = np.full((count, steps), -1, dtype=np.int64)
    is_chain = np.zeros((count, steps), dtype=bool)
    chain_known = np.full(count, steps, dtype=np.int64)
    family, alive, on_chain = np.zeros(count, np.int64), np.ones(count, bool), np.ones(count, bool)
    for step in range(steps):
        own = family[:, None] * top_k + np.arange(top_k)
        right = np.take_along_axis(tokens, own, axis=1) == followed[:, step, None]
        right &= (alive & (step < lengths))[:, None]
        rank = right.argmax(axis=1)
        alive = right.any(axis=1)
        numbers[:, step] = np.where(alive, family * top_k + rank, -1)
        on_chain &= alive & (rank == 0)
        is_chain[:, step] = on_chain
        if step + 1 < steps:
            children = parents == numbers[:, step, None]
            children[:, 0] = False
            family = children.argmax(axis=1)
            alive &= children.any(axis=1)
            # The likeliest of siblings may be less likely than top-k others, and not drafted upon.
            chain_known = np.where(on_chain & ~alive, step + 1, chain_known)
            on_chain &= alive
    return _Path(numbers, is_chain, chain_known)


def _num_families(shape: TreeShape) -> int:
    return 1 + shape.top_k * (shape.num_steps - 1) if shape.num_steps > 1 else 0
