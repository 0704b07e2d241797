"""When requests are sent: so many conversations at a time, or arrivals of a Poisson process.

A conversation's turns follow each other, each with the answers before it. Nothing is dropped in
silence: a turn without an answer becomes a record with an error, and conversations that a time
limit leaves out are counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from fastmtp_benchmarks.endpoint import Answer, Endpoint, Sampling
from fastmtp_benchmarks.records import Record
from fastmtp_benchmarks.task import Conversation, Task


@dataclass(frozen=True)
class Level:
    """How hard a server is pressed: `concurrency` conversations, or `rate` arrivals a second."""

    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        return f"c{self.concurrency}" if self.rate is None else f"r{self.rate:g}"


@dataclass(frozen=True)
class Outcome:
    """Records in the order of the task, and seconds from the first request to the last answer."""

    records: list[Record]
    wall_seconds: float
    conversations_left_out: int


async def press(
    endpoint: Endpoint,
    configuration: str,
    task: Task,
    level: Level,
    sampling: Sampling,
    *,
    time_limit: float | None = None,
    seed: int = 0,
    on_record: Callable[[Record], None] = lambda record: None,
) -> Outcome:
    """Hold all conversations of `task`.

    Args:
        endpoint: Where to.
        configuration: Name that the records bear.
        task: What to ask; a conversation's own output length wins over that of `sampling`.
        level: Concurrency or arrival rate.
        sampling: How to answer.
        time_limit: Seconds after which no conversation begins any more; begun ones end.
        seed: Of the arrival times.
        on_record: Called with each record as it comes.

    Raises:
        FastMTPError: See `Endpoint.answer`.
    """
    began = time.perf_counter()
    finished: dict[str, list[Record]] = {}

    async def hold(conversation: Conversation) -> None:
        own = conversation.output_length
        chosen = sampling if own is None else replace(sampling, output_length=own)
        messages = [{"role": "system", "content": conversation.system}]
        if conversation.system is None:
            messages = []
        records = finished[conversation.id] = []
        failed = False
        for turn, question in enumerate(conversation.turns):
            if failed:
                answer = Answer(error="an earlier turn of the conversation failed")
            else:
                messages.append({"role": "user", "content": question})
                answer = await endpoint.answer(messages, chosen)
                messages.append({"role": "assistant", "content": answer.text})
            failed = answer.error is not None
            records.append(_record(answer, configuration, task.name, conversation.id, turn))
            on_record(records[-1])

    def is_late() -> bool:
        return time_limit is not None and time.perf_counter() - began > time_limit

    if level.rate is None:
        assert level.concurrency is not None
        waiting = iter(task.conversations)

        async def worker() -> None:
            for conversation in _until(is_late, waiting):
                await hold(conversation)

        workers = min(level.concurrency, len(task.conversations))
        async with _unwrapped(), asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(worker())
    else:
        generator = random.Random(seed)
        async with _unwrapped(), asyncio.TaskGroup() as group:
            due = began
            for conversation in task.conversations:
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if is_late():
                    break
                group.create_task(hold(conversation))
                due += generator.expovariate(level.rate)
    wall = time.perf_counter() - began
    records = [record for c in task.conversations for record in finished.get(c.id, ())]
    return Outcome(records, wall, len(task.conversations) - len(finished))


def fastest(outcomes: Sequence[Outcome]) -> Outcome:
    """Return of each conversation its fastest run, and the shortest wall time.

    What other programs do to a machine only ever adds time, and every configuration is treated in
    the same way. A conversation that failed in any run counts as failed.
    """
    runs: dict[str, list[list[Record]]] = {}
    for outcome in outcomes:
        for prompt_id, turns in itertools.groupby(outcome.records, lambda r: r.prompt_id):
            runs.setdefault(prompt_id, []).append(list(turns))

    def cost(turns: list[Record]) -> tuple[bool, float]:
        succeeded = all(turn.error is None for turn in turns)
        return succeeded, sum(turn.seconds or 0.0 for turn in turns)

    chosen = [min(alternatives, key=cost) for alternatives in runs.values()]
    return Outcome(
        [record for turns in chosen for record in turns],
        min(outcome.wall_seconds for outcome in outcomes),
        min(outcome.conversations_left_out for outcome in outcomes),
    )


def _until(is_late: Callable[[], bool], waiting: Iterator[Conversation]) -> Iterator[Conversation]:
    while not is_late() and (conversation := next(waiting, None)) is not None:
        yield conversation


@contextlib.asynccontextmanager
async def _unwrapped() -> AsyncIterator[None]:
    """Raise the first of a task group's errors itself, not in an ExceptionGroup."""
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _record(answer: Answer, configuration: str, task: str, prompt_id: str, turn: int) -> Record:
    named = Record(
        configuration=configuration,
        task=task,
        prompt_id=prompt_id,
        turn=turn,
        prompt_digest=answer.prompt_digest,
        error=answer.error,
        attempts=answer.attempts,
        lost_seconds=round(answer.lost_seconds, 6),
    )
    if answer.error is not None:
        return named
    counted = [(round(s, 6), n) for s, n in answer.arrivals if n is not None]
    return named.model_copy(
        update={
            "prompt_tokens": answer.prompt_tokens,
            "output_tokens": answer.output_tokens,
            "token_ids": answer.token_ids,
            "text": answer.text,
            "reasoning": answer.reasoning,
            "finish_reason": answer.finish_reason,
            "seconds": round(answer.arrivals[-1][0], 6) if answer.arrivals else None,
            "first_token_seconds": round(answer.arrivals[0][0], 6) if answer.arrivals else None,
            "arrivals": counted if len(counted) == len(answer.arrivals) else None,
            "speculation": answer.speculation,
        }
    )


def warm_up_task(task: Task, count: int) -> Task:
    """Return a task of at most `count` conversations like those of `task`, but not the same.

    Their prompts begin in another way, so that a prefix cache which cannot be flushed knows no
    measured prompt.
    """
    return Task(
        task.name,
        tuple(
            Conversation(f"warm-up/{i}", (f"Warm-up {i}. {c.turns[0]}",), c.system)
            for i, c in enumerate(task.conversations[:count])
        ),
    )
