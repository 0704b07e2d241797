"""Which draft list each running request scores: its language, kept per request slot on the device.

A slot (`req_pool_indices`) starts from its whole prompt on the host (`start`) and moves with the
tokens that verification accepts (`advance`): a handful of torch operations on a CPU, one kernel of
ours on a GPU. Nothing waits for the device, so overlapped scheduling keeps its pace. All calls are
made on SGLang's forward stream, whose order also makes the reuse of slots safe. `lists` is what the
draft head reads, inside CUDA graphs too.

A list that fails its request is left for the full vocabulary: a token that the list lacks can never
be drafted right. Lists only decide what is drafted; the target verifies over its full vocabulary.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastmtp_kernels.own_tokens import remember_tokens
from fastmtp_kernels.route import (
    RouteRules,
    RouteState,
    RouteTables,
    advance_routes,
    new_state,
)
from fastmtp_sglang.serving.routing.own_tokens import (
    hold_own,
    own_tokens_of,
    remember_in_torch,
)
from fastmtp_sglang.vocabulary.draft_vocabulary import FULL_VOCABULARY, DraftVocabulary
from fastmtp_sglang.vocabulary.languages import (
    HALF_LIFE,
    LANGUAGES,
    LATIN_WEIGHT,
    MIN_CODE_SIGNS,
    MIN_EVIDENCE,
    MIN_KANA_SHARE,
    NUM_SCRIPTS,
    advance_state,
    count_scripts,
    decide_language,
    language_of_script,
    state_of_prompt,
)
from fastmtp_sglang.vocabulary.scripts import Script

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
# The list of a slot without a request: it costs the kernel nothing.
_NO_LIST = -1
_RULES = RouteRules(
    latin=Script.LATIN,
    han=Script.HAN,
    kana=Script.KANA,
    code=Script.CODE,
    other=Script.OTHER,
    code_language=LANGUAGES.index("code"),
    kana_language=LANGUAGES.index("ja"),
    half_life=float(HALF_LIFE),
    min_evidence=MIN_EVIDENCE,
    latin_weight=LATIN_WEIGHT,
    min_kana_share=MIN_KANA_SHARE,
    min_code_signs=MIN_CODE_SIGNS,
    leave_above=_LEAVE_ABOVE,
    return_below=_RETURN_BELOW,
    min_seen=_MIN_SEEN,
)


class Count(IntEnum):
    """Rows of `Router.counts()`, which are per list."""

    DRAFTED = 0  # tokens of the deepest path
    ACCEPTED = 1  # drafted tokens
    MISSES = 2  # rejected drafts whose right token was in neither list nor own tokens
    REROUTED = 3  # requests that came to this list from another one
    FALLBACKS = 4  # requests that left this list because it failed them
    AVOIDED = 5  # accepted drafts that the list lacks: misses, but for the request's own tokens


def advance_in_torch(
    tables: RouteTables,
    state: RouteState,
    rules: RouteRules,
    slots: Tensor,
    token_ids: Tensor,
    accept_lens: Tensor,
) -> None:
    """What `fastmtp_kernels.route.advance_routes` does on a GPU, defined in torch operations."""
    tokens, accepted = token_ids.long(), accept_lens.long()
    valid = torch.arange(tokens.shape[1], device=tokens.device) < accepted.unsqueeze(1)
    inside = tokens.clamp(0, len(tables.members) - 1)
    holders = tables.members[inside]
    used = state.lists[slots].clamp(min=0)
    _count_drafts(state, slots, used, inside, holders, accepted)

    counts = count_scripts(tables.token_scripts, tokens, valid)
    scripts = advance_state(state.scripts[slots], counts, accepted)
    language = decide_language(scripts, state.language[slots])
    named = state.named[slots]
    wanted = torch.where(named >= 0, named, tables.routes[language])
    rerouted = wanted != state.wanted[slots]

    # What was seen against another list says nothing about this one.
    fade = torch.where(rerouted, 0, torch.exp2(-accepted / HALF_LIFE))
    drafted_from = _holds(holders, wanted) | hold_own(state.own_ids[slots, wanted], inside)
    lacking = (valid & ~drafted_from).sum(dim=1)
    seen = state.seen[slots] * fade + accepted
    outside = state.outside[slots] * fade + lacking
    was_left = state.left[slots] & ~rerouted
    limit = torch.where(was_left, rules.return_below, rules.leave_above)
    left = (outside > limit * seen) & (seen >= rules.min_seen)

    state.scripts[slots] = scripts
    state.language[slots] = language
    state.wanted[slots] = wanted
    state.seen[slots] = seen
    state.outside[slots] = outside
    state.left[slots] = left
    state.lists[slots] = torch.where(left, state.counts.shape[2] - 1, wanted)
    _add(state, slots, Count.REROUTED, wanted, rerouted)
    _add(state, slots, Count.FALLBACKS, wanted, left & ~was_left)
    if state.own_ids.shape[2]:
        own = state.own_ids, state.own_stamps
        remember_in_torch(tables.members, *own, slots, token_ids, accept_lens)


def _count_drafts(
    state: RouteState,
    slots: Tensor,
    used: Tensor,
    tokens: Tensor,
    holders: Tensor,
    accepted: Tensor,
) -> None:
    width = tokens.shape[1]
    unlisted = ~_holds(holders, used)
    possible = ~unlisted | hold_own(state.own_ids[slots, used], tokens)
    last = (accepted - 1).unsqueeze(1)
    missed = (accepted < width) & ~possible.gather(1, last).squeeze(1)
    avoided = unlisted & (torch.arange(width, device=tokens.device) < last)
    _add(state, slots, Count.DRAFTED, used, torch.full_like(accepted, width - 1))
    _add(state, slots, Count.ACCEPTED, used, accepted - 1)
    _add(state, slots, Count.MISSES, used, missed)
    _add(state, slots, Count.AVOIDED, used, avoided.sum(dim=1))


def _add(state: RouteState, slots: Tensor, count: Count, lists: Tensor, amount: Tensor) -> None:
    state.counts[slots, int(count), lists] += amount.long()


def _holds(holders: Tensor, lists: Tensor) -> Tensor:
    """Whether list [B] is among the lists of each token, given as bits int32 [B, n]."""
    return (holders >> lists.unsqueeze(1)) & 1 != 0


class Router:
    """Language state of every request slot.

    Attributes:
        names: the lists, in the order of their indices; the last one is the full vocabulary.
        state: see `RouteState`; on the device.
        advance_on_host: how slots move where there is no GPU; a platform may put its own there.
        remember_on_host: how own tokens do, likewise.
    """

    advance_on_host = staticmethod(advance_in_torch)
    remember_on_host = staticmethod(remember_in_torch)

    def __init__(self, vocabulary: DraftVocabulary, num_slots: int, device: torch.device | str):
        """Build the tables of `vocabulary` for slots 0 to `num_slots` - 1."""
        self.names = (*vocabulary.languages, FULL_VOCABULARY)
        self._full = len(self.names) - 1
        routes = vocabulary.routing_table()
        self._tables = RouteTables(
            token_scripts=vocabulary.token_scripts.to(device),
            members=_membership(vocabulary).to(device),
            routes=torch.where(routes < 0, self._full, routes).to(device),
            language_of_script=language_of_script().to(device),
        )
        self._host_scripts = vocabulary.token_scripts
        self._host_members = _membership(vocabulary).numpy()
        self._owners: list[Any] = [None] * num_slots
        self._has_warned = False
        self.state = new_state(
            num_slots, NUM_SCRIPTS, len(self.names), vocabulary.own_tokens, device
        )

    @property
    def lists(self) -> Tensor:
        """int64 [num_slots]: the list to draft from, or -1 for a slot that no request has used."""
        return self.state.lists

    @property
    def own_tokens(self) -> Tensor | None:
        """int32 [num_slots, len(names), N], the own tokens to draft from too, None for none."""
        return self.state.own_ids if self.state.own_ids.shape[2] else None

    def allowed(self, slots: Tensor) -> Tensor:
        """Which tokens each slot [B] drafts from; bool [B, vocab_size]."""
        members = self._tables.members.expand(len(slots), -1)
        lists = self.lists[slots].clamp(min=0)
        allowed = _holds(members, lists)
        if self.own_tokens is None:
            return allowed
        own = self.own_tokens[slots, lists].long()
        # Free entries name a column of their own.
        wide = torch.nn.functional.pad(allowed, (0, 1))
        return wide.scatter_(1, torch.where(own < 0, members.shape[1], own), True)[:, :-1]

    def counts(self) -> Tensor:
        """Counters since the start, int64 [len(Count), len(names)].

        Overlapped scheduling runs one step more than a finished request needs; it is counted.
        """
        return self.state.counts.sum(dim=0)

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
        self._start_own_tokens(new)
        state, device = self.state, self.lists.device
        scripts = torch.stack(states)
        index, scripts, language, name = (
            tensor.to(device, non_blocking=True)
            for tensor in (
                torch.tensor([slot for slot, _ in new]),
                scripts,
                decide_language(scripts),
                torch.tensor(named),
            )
        )
        wanted = torch.where(name >= 0, name, self._tables.routes[language])
        state.scripts[index] = scripts
        state.language[index] = language
        state.named[index] = name
        state.wanted[index] = wanted
        state.seen[index] = 0
        state.outside[index] = 0
        state.left[index] = False
        state.lists[index] = wanted

    def advance(self, slots: Tensor, token_ids: Tensor, accept_lens: Tensor) -> None:
        """Move the slots on by the tokens that one verification accepted.

        Args:
            slots: int64 [B], distinct.
            token_ids: integer [B, K+1], the target's choice after each draft of the accepted path.
            accept_lens: integer [B], how many of them count: accepted drafts and the bonus token.
        """
        move = advance_routes if slots.device.type == "cuda" else self.advance_on_host
        move(self._tables, self.state, _RULES, slots, token_ids, accept_lens)

    def remember(self, slots: Sequence[int], token_ids: Tensor, counted: Sequence[bool]) -> None:
        """Note tokens that were decided without a verification: what a prefill leads to.

        Args:
            slots: distinct, one per request.
            token_ids: integer [B], one of each request, on the device.
            counted: which of them are decided.
        """
        if self.own_tokens is None:
            return
        index, counts = (
            torch.tensor(values, dtype=torch.int64).to(token_ids.device, non_blocking=True)
            for values in (slots, counted)
        )
        move = remember_tokens if token_ids.device.type == "cuda" else self.remember_on_host
        own = self.state.own_ids, self.state.own_stamps
        move(self._tables.members, *own, index, token_ids.unsqueeze(1), counts)

    def _start_own_tokens(self, new: Sequence[tuple[int, Any]]) -> None:
        if self.own_tokens is None:
            return
        lists, number = self.own_tokens.shape[1:]
        entries = [
            own_tokens_of(_all_tokens(request), self._host_members, lists, number)
            for _, request in new
        ]
        index = torch.tensor([slot for slot, _ in new])
        for kept, made in zip(
            (self.state.own_ids, self.state.own_stamps), zip(*entries, strict=True), strict=True
        ):
            device = kept.device
            rows = torch.stack(made).to(device, non_blocking=True)
            kept[index.to(device, non_blocking=True)] = rows

    def _list_named_by(self, request: Any) -> int:
        name = (request.sampling_params.custom_params or {}).get("lang")
        if name is None:
            return _NO_LIST
        if name in self.names:
            return self.names.index(name)
        # Clients choose the names: one line, however many there are.
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                'custom_params {"lang": %.40r} names no draft list (there are %s); such requests '
                "are routed by their text.",
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


def _all_tokens(request: Any) -> NDArray[np.int64]:
    """Prompt and, after a retraction, output."""
    parts = (request.origin_input_ids, request.output_ids)
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
