"""A whole benchmark: every configuration on every task at every load level.

Configurations are served one after the other, or all at once (`Plan.side_by_side`): then each task
is measured on one after the other, and a machine whose speed wanders meets all of them alike.

What is finished is kept: the same command goes on where an earlier run was stopped, and a run with
other settings over the same directory is refused. One after the other, the report is written anew
after each configuration, so that a long run can be looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmtp_benchmarks.configurations import BASELINE, Configuration, vocabulary_size
from fastmtp_benchmarks.connect import Api, connect
from fastmtp_benchmarks.endpoint import Endpoint, Sampling
from fastmtp_benchmarks.environment import environment
from fastmtp_benchmarks.load import Level, Outcome, fastest, press, warm_up_task
from fastmtp_benchmarks.records import Record, SpecCounters
from fastmtp_benchmarks.report import write_report
from fastmtp_benchmarks.rows import Row, make_row
from fastmtp_benchmarks.store import Cell, CellInfo, Store, cell_name
from fastmtp_benchmarks.task import Task
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.servers.server_process import ServerProcess

_WARM_UP_TOKENS = 24
_MOST_WARM_UPS = 16


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        command: How it was started, for the reader of the report.
        baseline: Configuration that speedups compare with; None for none.
        repeats: Runs of each cell; of every conversation the fastest counts.
        time_limit: Seconds per cell after which no conversation begins.
        timeout: Seconds that one answer may take.
        rerun: Measure finished cells again.
        side_by_side: Keep all configurations served, and change between them at each task.
        tokenizer: For prompts, None for the served model's own.
    """

    output: Path
    configurations: Sequence[Configuration]
    tasks: Sequence[Task]
    levels: Sequence[Level]
    sampling: Sampling
    command: str
    baseline: str | None = BASELINE
    api: Api = "auto"
    api_key: str | None = None
    tokenizer: Any = None
    time_limit: float | None = None
    timeout: float = 600.0
    retries: int = 2
    seed: int = 0
    repeats: int = 1
    rerun: bool = False
    side_by_side: bool = False


@dataclass(frozen=True)
class _Wanted:
    """A cell that is to be measured."""

    name: str
    configuration: Configuration
    task: Task
    level: Level
    settings: dict[str, Any]


def run(
    plan: Plan,
    say: Callable[[str], None],
    on_record: Callable[[Record], None] = lambda record: None,
) -> list[Row]:
    """Measure what is not finished and return the rows of the report.

    Args:
        plan: What to measure.
        say: Receives lines for people.
        on_record: Called with every measured turn.

    Raises:
        FastMTPError: A finished cell has other settings, a server does not start or answer, or all
            answers of a cell failed.
    """
    store = Store(plan.output)
    pending = _pending(plan, store, say)
    if plan.side_by_side:
        with contextlib.ExitStack() as stack:
            servers = {
                configuration: stack.enter_context(_served(configuration, plan, say))
                for configuration in dict.fromkeys(wanted.configuration for wanted in pending)
            }
            for wanted in sorted(pending, key=lambda wanted: _turn(plan, wanted)):
                url, check = servers[wanted.configuration]
                asyncio.run(_measure(plan, store, url, check, [wanted], say, on_record))
        return _report(plan, plots=True)
    rows: list[Row] = []
    for number, configuration in enumerate(plan.configurations, 1):
        cells = [wanted for wanted in pending if wanted.configuration == configuration]
        if cells:
            with _served(configuration, plan, say) as (url, check):
                asyncio.run(_measure(plan, store, url, check, cells, say, on_record))
        rows = _report(plan, plots=number == len(plan.configurations))
    return rows


def _turn(plan: Plan, wanted: _Wanted) -> tuple[int, ...]:
    """Place of a cell where configurations take turns."""
    return (
        plan.levels.index(wanted.level),
        plan.tasks.index(wanted.task),
        plan.configurations.index(wanted.configuration),
    )


def _report(plan: Plan, *, plots: bool) -> list[Row]:
    return write_report(
        plan.output,
        plan.command,
        baseline=plan.baseline,
        configurations=[configuration.name for configuration in plan.configurations],
        tasks=[task.name for task in plan.tasks],
        plots=plots,
    )


def _pending(plan: Plan, store: Store, say: Callable[[str], None]) -> list[_Wanted]:
    """Return the cells to measure; refuses finished ones with other settings."""
    pending = []
    finished = 0
    for configuration in plan.configurations:
        for task in plan.tasks:
            for level in plan.levels:
                wanted = _Wanted(
                    cell_name(configuration.name, task.name, level),
                    configuration,
                    task,
                    level,
                    _settings(plan, configuration, task),
                )
                info = None if plan.rerun else store.info(wanted.name)
                if info is None:
                    pending.append(wanted)
                else:
                    finished += 1
                    _refuse_changed(plan.output, wanted, info)
    if finished:
        say(f"{finished} of {finished + len(pending)} measurements are finished and kept")
    return pending


def _settings(plan: Plan, configuration: Configuration, task: Task) -> dict[str, Any]:
    """Return what the figures of a cell depend on, as JSON keeps it."""
    return {
        "served": configuration.served,
        "api": plan.api,
        "task": task.digest,
        "sampling": asdict(plan.sampling),
        "time_limit": plan.time_limit,
        "timeout": plan.timeout,
        "retries": plan.retries,
        "seed": plan.seed,
        "repeats": plan.repeats,
    }


def _refuse_changed(output: Path, wanted: _Wanted, info: CellInfo) -> None:
    for name, value in wanted.settings.items():
        if info.settings.get(name) != value:
            raise FastMTPError(
                f"--output {output}: {wanted.name} was measured with {name} "
                f"{info.settings.get(name)!r}, and now it is {value!r}: give another --output, or "
                "--rerun to measure again"
            )


@contextlib.contextmanager
def _served(
    configuration: Configuration, plan: Plan, say: Callable[[str], None]
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield the URL of a running server, started here if need be, and a check that it still runs.

    The check raises FastMTPError with the end of the log.
    """
    if configuration.url is not None:
        yield configuration.url, lambda: None
        return
    logs = plan.output / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    say(f"{configuration.name}: sglang serve {configuration.served}")
    _, model, *arguments = configuration.arguments
    server = ServerProcess(model, arguments, log_path=logs / f"{configuration.name}.log")
    with server:
        yield server.url, server.check_alive


async def _measure(
    plan: Plan,
    store: Store,
    url: str,
    check: Callable[[], None],
    cells: Sequence[_Wanted],
    say: Callable[[str], None],
    on_record: Callable[[Record], None],
) -> None:
    name = cells[0].configuration.name
    flag = "--endpoint" if cells[0].configuration.url else f"--configuration {name}"
    endpoint, server = await connect(
        url,
        api=plan.api,
        tokenizer=plan.tokenizer,
        flag=flag,
        api_key=plan.api_key,
        timeout=plan.timeout,
        retries=plan.retries,
    )
    async with endpoint:
        for wanted in cells:
            measured_on = environment()  # before, so that the load is not our own
            outcome, flushed, counters = await _measure_cell(plan, endpoint, wanted, on_record)
            check()  # what a dying server answered is no measurement
            info = CellInfo(
                configuration=name,
                task=wanted.task.name,
                concurrency=wanted.level.concurrency,
                request_rate=wanted.level.rate,
                settings=wanted.settings,
                server=server,
                environment=measured_on,
                wall_seconds=outcome.wall_seconds,
                conversations_left_out=outcome.conversations_left_out,
                cache_flushed=flushed,
                server_counters=counters,
                vocabulary_size=vocabulary_size(server.get("speculative_token_map")),
            )
            cell = Cell(info, outcome.records)
            _refuse_all_failed(wanted, outcome.records)
            store.save(wanted.name, cell)
            say(_line(make_row(cell, None)))


async def _measure_cell(
    plan: Plan, endpoint: Endpoint, wanted: _Wanted, on_record: Callable[[Record], None]
) -> tuple[Outcome, bool, SpecCounters | None]:
    """Return the outcome, whether the prefix cache was cold, and the server's own counters."""
    await _warm_up(endpoint, wanted)
    before = await endpoint.counters()
    flushed = True
    outcomes = []
    for _ in range(plan.repeats):
        flushed = await endpoint.flush() and flushed
        outcomes.append(
            await press(
                endpoint,
                wanted.configuration.name,
                wanted.task,
                wanted.level,
                plan.sampling,
                time_limit=plan.time_limit,
                seed=plan.seed,
                on_record=on_record,
            )
        )
    counters = _between(before, await endpoint.counters())
    answers = [record for outcome in outcomes for record in outcome.records]
    # What a failed request had been sent before it failed is not told.
    if counters is not None and all(answer.error is None for answer in answers):
        counters = counters.emitted(sum((a.output_tokens or 1) - 1 for a in answers))
    return fastest(outcomes), flushed, counters


async def _warm_up(endpoint: Endpoint, wanted: _Wanted) -> None:
    """Answer a few prompts that are like the measured ones."""
    count = min(wanted.level.concurrency or 4, _MOST_WARM_UPS)
    level = Level(concurrency=count)
    sampling = Sampling(max_new_tokens=_WARM_UP_TOKENS)
    await press(endpoint, "warm-up", warm_up_task(wanted.task, count), level, sampling)


def _refuse_all_failed(wanted: _Wanted, records: Sequence[Record]) -> None:
    """Stop where nothing was answered: that is a broken set-up, and no measurement to keep."""
    if records and all(record.error is not None for record in records):
        raise FastMTPError(
            f"{wanted.configuration.name}, {wanted.task.name}: all {len(records)} requests failed, "
            f"the first with: {records[0].error}"
        )


def _between(before: SpecCounters | None, after: SpecCounters | None) -> SpecCounters | None:
    """Return what a server counted between two readings of its totals."""
    if before is None or after is None or after.verifications == before.verifications:
        return None
    histogram = None
    if before.histogram is not None and after.histogram is not None:
        padded = before.histogram + [0] * (len(after.histogram) - len(before.histogram))
        histogram = [a - b for a, b in zip(after.histogram, padded, strict=True)]
    return SpecCounters(
        verifications=after.verifications - before.verifications,
        accepted_drafts=after.accepted_drafts - before.accepted_drafts,
        histogram=histogram,
    )


def _line(row: Row) -> str:
    """Return a cell in one line."""
    parts = [f"{row.configuration}, {row.task}, {row.level}:"]
    if row.tokens_per_second is not None:
        parts.append(f"{row.tokens_per_second:.1f} tokens/s")
    if row.acceptance_length is not None:
        parts.append(f"acceptance length {row.acceptance_length:.2f}")
    parts.append(f"{row.requests - row.failed} of {row.requests} answered")
    return " ".join([parts[0], ", ".join(parts[1:])])
