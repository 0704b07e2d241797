"""The run: conversations are put to the endpoints, turn by turn, and kept in the store.

Everything runs in one event loop; `concurrency` conversations are in flight, and a conversation
asks its turns one after the other, since each one holds the target's own answers before it.
"""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

from fastmtp_sglang.distill.chat import Prompting
from fastmtp_sglang.distill.endpoints import EndpointPool, Generation, RequestFailedError
from fastmtp_sglang.distill.prompts import BadRowError, Conversation, PromptSource
from fastmtp_sglang.distill.records import Message, Record, Sampling
from fastmtp_sglang.distill.settings import Settings
from fastmtp_sglang.distill.store import FAILED, Store
from fastmtp_sglang.errors import FastMTPError

SELF = "self"
# What SGLang keeps free at the end of the context (more when it speculates).
_CONTEXT_RESERVE = 32
# A target that repeats itself more often than this will not fill the order in reasonable time.
_MAX_REJECTED_SHARE = 0.9
_MIN_REJECTED = 100
_REJECTED = "prompt "  # begins the reasons for which a self-written prompt is replaced


@dataclass(frozen=True)
class Work:
    """One conversation to hold.

    Attributes:
        key: Its name in the store.
        source: Its name in the records.
        opening: The user's turns, None where the target writes them.
        start: First words of a self-written first turn.
    """

    key: str
    source: str
    opening: Conversation | BadRowError | None
    start: str = ""


@dataclass
class Progress:
    """What a run has done since it started.

    Attributes:
        conversations: Over, those of earlier runs included.
        total: Of `conversations`, None if unknown.
        tokens: Generated in this run, self-written prompts included.
        dropped: Of `conversations`, those that ended before their last turn.
    """

    total: int | None
    conversations: int = 0
    tokens: int = 0
    dropped: int = 0


@dataclass
class Distiller:
    """One run over all work.

    Attributes:
        settings: What a request asks.
        chat: How messages are put to the target.
        pool: Where to ask.
        store: Where answers go.
        context_length: Tokens of prompt and answer that the server takes.
        vocab_size: Of the target; an answer with an id beyond it is a failed request.
        seeded: Whether the servers obey a request's seed; others ignore it.
        concurrency: Conversations in flight.
        on_progress: Called after every request.
    """

    settings: Settings
    chat: Prompting
    pool: EndpointPool
    store: Store
    context_length: int
    vocab_size: int
    seeded: bool
    concurrency: int
    on_progress: Callable[[Progress], None]
    progress: Progress = field(init=False)
    _opened: set[str] = field(init=False)
    _rejected: int = field(init=False, default=0)

    async def answer_prompts(self, sources: list[PromptSource], limit: int | None) -> None:
        """Answer the rows of all sources, at most the first `limit` of each.

        Raises FastMTPError as `EndpointPool` and `Store` do; what is answered is kept.
        """
        rows = [_smallest(source.total, limit) for source in sources]
        known = [total for total in rows if total is not None]
        total = sum(known) * self.settings.samples if len(known) == len(rows) else None
        await self._run(_rows_of(sources, limit, self.settings.samples), total)

    async def answer_itself(self, conversations: int) -> None:
        """Let the target write `conversations` distinct prompts and answer them.

        Raises FastMTPError as above, and when the target writes the same few prompts again and
        again.
        """
        self._opened = {_normalized(text) for text in self.store.opening_prompts}
        await self._run(self._self_written(conversations), conversations)

    def _self_written(self, conversations: int) -> Iterator[Work | None]:
        starts = self.settings.prompt_starts or [""]
        index = 0
        while True:
            # A rejected prompt is replaced by a further index; the worker that rejected it asks
            # here again, so that None may be followed by more.
            if index - self._rejected < conversations:
                yield Work(f"{SELF}/{index}/0", SELF, None, starts[index % len(starts)])
                index += 1
            else:
                yield None

    async def _run(self, work: Iterator[Work | None], total: int | None) -> None:
        self.progress = Progress(total)
        one_reader = asyncio.Lock()

        async def hold_conversations() -> None:
            while True:
                async with one_reader:  # a data set may read the network: not in the event loop
                    item = await asyncio.to_thread(next, work, None)
                if item is None:
                    return
                await self._converse(item)
                self.on_progress(self.progress)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.concurrency):
                    group.create_task(hold_conversations())
        except BaseExceptionGroup as errors:
            # All workers meet a dead server; one of them tells it.
            raise errors.exceptions[0] from None

    async def _converse(self, work: Work) -> None:
        """Hold one conversation, or what an earlier run left of it."""
        reason = self.store.skip_reason(work.key)
        last = self.store.last_record(work.key)
        if reason is None and not (last and last.finish_reason == "length"):
            await self._go_on(work, last)
            reason = self.store.skip_reason(work.key)
        if reason is not None and not self.store.has_answers(work.key) and _is_rejected(reason):
            self._rejected += 1
            self._check_variety(reason)
        else:
            self.progress.conversations += 1
            self.progress.dropped += reason is not None

    async def _go_on(self, work: Work, last: Record | None) -> None:
        if isinstance(work.opening, BadRowError):
            self.store.skip(work.key, 0, "bad row", f"the row {work.opening}")
            return
        system = (work.opening.system if work.opening else None) or self.settings.system
        messages = [Message(role="system", content=system)] if system else []
        turn = 0
        if last is not None:
            messages = [*last.messages, Message(role="assistant", content=last.answer)]
            turn = last.turn + 1
        turns = self.settings.turns
        if work.opening is not None:
            turns = min(len(work.opening.turns), turns or len(work.opening.turns))
        for number in range(turn, turns or 1):
            try:
                if work.opening is not None:
                    said: str | None = work.opening.turns[number]
                else:
                    said = await self._user_turn(work, number, messages)
                if said is None:
                    return
                messages = [*messages, Message(role="user", content=said)]
                answer = await self._answer(work, number, messages)
            except RequestFailedError as error:
                self.store.skip(work.key, number, FAILED, str(error))
                return
            if answer is None:
                return
            messages = [*messages, Message(role="assistant", content=answer)]

    async def _user_turn(self, work: Work, turn: int, messages: list[Message]) -> str | None:
        """Return what the target says as the user, None if that is nothing to answer."""
        identity = f"{work.key}/{turn}"
        kept = self.store.prompt(identity)
        if kept is not None:
            return kept
        sampling = self.settings.prompt_sampling
        assert sampling is not None
        where = self.chat.user_turn(messages, work.start if turn == 0 else "")
        asked = where.prefix_ids + where.start_ids
        extra: dict[str, Any] = {"stop_token_ids": where.stop_ids} if where.stop_ids else {}
        if where.stop_text:
            extra["stop"] = [where.stop_text]
        made = await self._generate(f"{identity}/prompt", asked, sampling, extra)
        if made is None:
            self.store.skip(work.key, turn, "context full")
            return None
        generation, _ = made
        ids = generation.ids[:-1] if generation.stop_id is not None else generation.ids
        text = self.chat.text(where.start_ids + ids)
        if where.stop_text and generation.stop_id is None:
            text = text.partition(where.stop_text)[0]
        # A cut may go through the bytes of a character.
        text = text.rstrip("\ufffd").strip()
        reason = self._unfit(generation, ids, text, opening=turn == 0)
        if reason is not None:
            self.store.skip(work.key, turn, f"{_REJECTED}{reason}", text[:200])
            return None
        if turn == 0:
            self._opened.add(_normalized(text))
        self.store.add_prompt(identity, text)
        return text

    def _unfit(
        self, generation: Generation, ids: list[int], text: str, *, opening: bool
    ) -> str | None:
        """Return why a self-written turn is not put to the target, or None."""
        if generation.finish_reason == "length" and self.chat.needs_whole_turns:
            return "without an end"
        if not text:
            return "empty"
        if self.chat.has_special(ids):
            return "with control tokens"
        if opening and _normalized(text) in self._opened:
            return "duplicate"
        return None

    async def _answer(self, work: Work, turn: int, messages: list[Message]) -> str | None:
        """Ask one turn and keep the answer; None if the conversation ends with it."""
        identity = f"{work.key}/{turn}"
        try:
            prompt_ids = self.chat.prompt_ids(messages)
        except FastMTPError as error:
            raise RequestFailedError(str(error)) from error
        made = await self._generate(identity, prompt_ids, self.settings.sampling, {})
        if made is None:
            self.store.skip(work.key, turn, "context full", f"{len(prompt_ids)} prompt tokens")
            return None
        generation, sampling = made
        is_cut = generation.finish_reason == "length"
        if is_cut and not self.settings.keep_truncated:
            self.store.skip(work.key, turn, "cut by length", f"{len(generation.ids)} tokens")
            return None
        ids = generation.ids[:-1] if generation.stop_id is not None else generation.ids
        record = Record(
            id=identity,
            conversation=work.key,
            turn=turn,
            source=work.source,
            messages=messages,
            prompt_ids=prompt_ids,
            answer_ids=generation.ids,
            answer=self.chat.text(ids),
            finish_reason=generation.finish_reason,
            sampling=sampling,
            model=self.settings.model,
        )
        self.store.add(record)
        # A user does not answer half a sentence: later turns would follow on nothing seen in use.
        return None if is_cut else record.answer

    async def _generate(
        self, identity: str, prompt_ids: list[int], sampling: Sampling, extra: dict[str, Any]
    ) -> tuple[Generation, Sampling] | None:
        """Generate within the context; None when the prompt leaves no room."""
        room = self.context_length - len(prompt_ids) - _CONTEXT_RESERVE
        if room < 1:
            return None
        sent = sampling.model_copy(update={"max_new_tokens": min(sampling.max_new_tokens, room)})
        seed = {"sampling_seed": _seed(self.settings.seed, identity)} if self.seeded else {}
        generation = await self.pool.generate(prompt_ids, {**sent.model_dump(), **seed, **extra})
        for token in generation.ids:
            if type(token) is not int or not 0 <= token < self.vocab_size:
                raise RequestFailedError(f"answered {token!r}, which is no id of the vocabulary")
        self.progress.tokens += len(generation.ids)
        self.on_progress(self.progress)
        return generation, sent

    def _check_variety(self, reason: str) -> None:
        tried = self._rejected + self.progress.conversations
        if self._rejected >= _MIN_REJECTED and self._rejected > _MAX_REJECTED_SHARE * tried:
            raise FastMTPError(
                f"--self-prompt: {self._rejected} of {tried} prompts that the target wrote cannot "
                f"be used (the last one: {reason}); what is answered is kept. Raise "
                "--prompt-temperature for more variety, --prompt-max-tokens for longer prompts, or "
                "give --prompts"
            )


def _rows_of(sources: list[PromptSource], limit: int | None, samples: int) -> Iterator[Work]:
    """Take the sources in turn, so that a run that is ended early has some of each."""
    streams = [(source.name, islice(source.conversations(), limit)) for source in sources]
    for index in count():
        openings = [(name, next(rows, None)) for name, rows in streams]
        if all(opening is None for _, opening in openings):
            return
        for name, opening in openings:
            if opening is not None:
                for sample in range(samples):
                    yield Work(f"{name}/{index}/{sample}", name, opening)


def _smallest(rows: int | None, limit: int | None) -> int | None:
    """Return how many rows a source gives; None if that is unknown (a limit may be above it)."""
    if rows is None:
        return limit
    return rows if limit is None else min(rows, limit)


def _is_rejected(reason: str) -> bool:
    return reason.startswith(_REJECTED)


def _normalized(text: str) -> str:
    """Return what two prompts share that are the same for people."""
    return " ".join(text.lower().split())


def _seed(seed: int, identity: str) -> int:
    digest = hashlib.blake2b(f"{seed} {identity}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
