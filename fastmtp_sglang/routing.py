"""Which draft list each running request scores: its language, kept per request slot on the device.

A slot (`req_pool_indices`) starts from its whole prompt on the host (`start`) and moves with the
tokens that verification accepts (`advance`), by device operations of fixed shape only: nothing
waits for the device, so overlapped scheduling keeps its pace. All calls are made on SGLang's
forward stream, whose order also makes the reuse of slots safe. `lists` is what the draft head
reads, inside CUDA graphs too.

A list that fails its request is left for the full vocabulary: a token that the list lacks can never
be drafted right. Lists only decide what is drafted; the target verifies over its full vocabulary.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import torch

from fastmtp_sglang.vocabulary.draft_vocabulary import FULL_VOCABULARY, DraftVocabulary
from fastmtp_sglang.vocabulary.languages import (
    HALF_LIFE,
    NUM_SCRIPTS,
    UNDECIDED,
    advance_state,
    count_scripts,
    decide_language,
    state_of_prompt,
)

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# A token this many half-lives back weighs less than float32 resolves beside a new one.
_PROMPT_TAIL = 24 * HALF_LIFE
# In the paper a list saves about an eighth of the time per token (arXiv 2509.18362, table 2); one
# that lacks every fifth token breaks more chains than that is worth. Apart, so that a request
# at the border does not flip.
_LEAVE_ABOVE, _RETURN_BELOW = 0.2, 0.1
# Tokens seen before a list can be judged.
_MIN_SEEN = 8.0
# The language that a slot without a request has: it costs the kernel nothing.
_NO_LIST = -1


class Count(IntEnum):
    """Rows of `Router.counts`, which are per list."""

    DRAFTED = 0  # tokens
    ACCEPTED = 1  # drafted tokens
    MISSES = 2  # rejected drafts whose right token the list lacks
    REROUTED = 3  # requests that came to this list from another one
    FALLBACKS = 4  # requests that left this list because it failed them


class Router:
    """Language state of every request slot.

    Attributes:
        names: the lists, in the order of their indices; the last one is the full vocabulary.
        lists: int64 [num_slots], index into `names` of the list to draft from, or -1 for a slot
            that no request has used.
        counts: int64 [len(Count), len(names)], since the start. Overlapped scheduling runs one step
            more than a finished request needs; that step is counted.
    """

    def __init__(self, vocabulary: DraftVocabulary, num_slots: int, device: torch.device | str):
        """Build the tables of `vocabulary` for slots 0 to `num_slots` - 1."""
        self.names = (*vocabulary.languages, FULL_VOCABULARY)
        full = len(self.names) - 1
        routes = vocabulary.routing_table()
        self._host_scripts = vocabulary.token_scripts
        self._token_scripts = vocabulary.token_scripts.to(device)
        self._routes = torch.where(routes < 0, full, routes).to(device)
        self._members = _membership(vocabulary).to(device)
        self._owners: list[Any] = [None] * num_slots

        def per_slot(value: float, dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.full((num_slots, *shape), value, dtype=dtype, device=device)

        self._scripts = per_slot(0, torch.float32, NUM_SCRIPTS)
        self._language = per_slot(UNDECIDED, torch.int64)
        self._named = per_slot(_NO_LIST, torch.int64)
        # The list that language or name asks for; `lists` differs where it has been left.
        self._wanted = per_slot(full, torch.int64)
        self._seen = per_slot(0, torch.float32)
        self._outside = per_slot(0, torch.float32)
        self._left = per_slot(False, torch.bool)
        self.lists = per_slot(_NO_LIST, torch.int64)
        self.counts = torch.zeros(len(Count), len(self.names), dtype=torch.int64, device=device)
        self._unknown_names: set[str] = set()

    def start(self, slots: Sequence[int], requests: Sequence[Any]) -> None:
        """Give slots to the requests of a prefill; those that own theirs already are left alone.

        Args:
            slots: one per request.
            requests: SGLang's `Req` objects: token ids of prompt and earlier output, and the
                language that `custom_params` may name.
        """
        new = [
            (slot, request)
            for slot, request in zip(slots, requests, strict=True)
            if self._owners[slot] is None or self._owners[slot]() is not request
        ]
        if not new:
            return
        states, named = [], []
        for slot, request in new:
            self._owners[slot] = weakref.ref(request)
            states.append(state_of_prompt(self._host_scripts, _recent_tokens(request)))
            named.append(self._list_named_by(request))
        device = self.lists.device
        index = torch.tensor([slot for slot, _ in new])
        scripts = torch.stack(states)
        language = decide_language(scripts)
        index, scripts, language, name = (
            tensor.to(device, non_blocking=True)
            for tensor in (index, scripts, language, torch.tensor(named))
        )
        wanted = torch.where(name >= 0, name, self._routes[language])
        self._scripts[index] = scripts
        self._language[index] = language
        self._named[index] = name
        self._wanted[index] = wanted
        self._seen[index] = 0
        self._outside[index] = 0
        self._left[index] = False
        self.lists[index] = wanted

    def advance(self, slots: Tensor, token_ids: Tensor, accept_lens: Tensor) -> None:
        """Move the slots on by the tokens that one verification accepted.

        Args:
            slots: int64 [B].
            token_ids: integer [B, K+1], the target's choice after each draft.
            accept_lens: integer [B], how many of them count: accepted drafts and the bonus token.
        """
        width = token_ids.shape[1]
        tokens = token_ids.long().clamp(0, len(self._members) - 1)
        accepted = accept_lens.long()
        valid = torch.arange(width, device=tokens.device) < accepted.unsqueeze(1)
        self._count_drafts(slots, tokens, accepted)

        scripts = advance_state(
            self._scripts[slots], count_scripts(self._token_scripts, tokens, valid), accepted
        )
        language = decide_language(scripts, self._language[slots])
        named, before = self._named[slots], self._wanted[slots]
        wanted = torch.where(named >= 0, named, self._routes[language])
        rerouted = wanted != before

        fade = torch.exp2(-accepted / HALF_LIFE)
        outside = (valid & ~self._holds(wanted, tokens)).sum(dim=1)
        # What was seen against another list says nothing about this one.
        seen = torch.where(rerouted, 0, self._seen[slots] * fade) + accepted
        outside = torch.where(rerouted, 0, self._outside[slots] * fade) + outside
        was_left = self._left[slots] & ~rerouted
        limit = torch.where(was_left, _RETURN_BELOW, _LEAVE_ABOVE)
        left = (outside > limit * seen) & (seen >= _MIN_SEEN)

        self._scripts[slots] = scripts
        self._language[slots] = language
        self._wanted[slots] = wanted
        self._seen[slots] = seen
        self._outside[slots] = outside
        self._left[slots] = left
        self.lists[slots] = torch.where(left, len(self.names) - 1, wanted)
        self._add(Count.REROUTED, wanted, rerouted)
        self._add(Count.FALLBACKS, wanted, left & ~was_left)

    def _count_drafts(self, slots: Tensor, tokens: Tensor, accepted: Tensor) -> None:
        used = self.lists[slots]
        last = tokens.gather(1, (accepted - 1).unsqueeze(1))
        rejected = accepted < tokens.shape[1]
        self._add(Count.DRAFTED, used, torch.full_like(accepted, tokens.shape[1] - 1))
        self._add(Count.ACCEPTED, used, accepted - 1)
        self._add(Count.MISSES, used, rejected & ~self._holds(used, last).squeeze(1))

    def _holds(self, lists: Tensor, tokens: Tensor) -> Tensor:
        """Whether the list of each row [B] holds its tokens [B, n]; bool [B, n]."""
        return (self._members[tokens] >> lists.clamp(min=0).unsqueeze(1)) & 1 != 0

    def _add(self, count: Count, lists: Tensor, amount: Tensor) -> None:
        self.counts[count].index_add_(0, lists.clamp(min=0), amount.long())

    def _list_named_by(self, request: Any) -> int:
        name = (request.sampling_params.custom_params or {}).get("lang")
        if name is None:
            return _NO_LIST
        if name in self.names:
            return self.names.index(name)
        if name not in self._unknown_names:
            self._unknown_names.add(name)
            logger.warning(
                'custom_params {"lang": %r} names no draft list (there are %s); such requests are '
                "routed by their text.",
                name,
                ", ".join(self.names),
            )
        return _NO_LIST


def _membership(vocabulary: DraftVocabulary) -> Tensor:
    """Bit l of entry t: list l holds token t; int32 [vocab_size], the full vocabulary included."""
    members = torch.full((vocabulary.vocab_size,), 1 << len(vocabulary.ids), dtype=torch.int32)
    for bit, ids in enumerate(vocabulary.ids.values()):
        members[ids] |= 1 << bit
    return members


def _recent_tokens(request: Any) -> Tensor:
    """The end of what the request holds so far: prompt and, after a retraction, output."""
    tokens = [*request.origin_input_ids[-_PROMPT_TAIL:], *request.output_ids[-_PROMPT_TAIL:]]
    return torch.tensor(tokens[-_PROMPT_TAIL:], dtype=torch.int64)
