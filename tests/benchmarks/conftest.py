"""Servers in threads, and records and cells of a test's own making."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest
from streaming_server import server, servers

from fastmtp_benchmarks.endpoint import Sampling
from fastmtp_benchmarks.native import NativeEndpoint
from fastmtp_benchmarks.records import Record, SpecCounters
from fastmtp_benchmarks.store import Cell, CellInfo, Store, cell_name


@pytest.fixture
def record():
    """Make a record; `arrivals` gives tokens and times unless they are given."""

    def make(
        prompt_id: str = "a",
        arrivals: list[tuple[float, int]] | None = None,
        *,
        counters: tuple[int, int] | tuple[int, int, list[int]] | None = None,
        **fields,
    ) -> Record:
        values = {"configuration": "fastmtp", "task": "t", "turn": 0, "prompt_tokens": 3}
        if arrivals:
            values |= {
                "arrivals": arrivals,
                "output_tokens": arrivals[-1][1],
                "seconds": arrivals[-1][0],
                "first_token_seconds": arrivals[0][0],
            }
        if counters:
            verified, accepted, *histogram = counters
            values["speculation"] = SpecCounters(
                verifications=verified,
                accepted_drafts=accepted,
                histogram=histogram[0] if histogram else None,
            )
        return Record(prompt_id=prompt_id, **(values | fields))

    return make


@pytest.fixture
def cell(record):
    """A cell of six conversations; `speed` is tokens per second after the first token."""

    def make(configuration="baseline", task="qa", concurrency=1, speed=10.0, **fields):
        counted = {} if configuration == "baseline" else {"counters": (10, 14, [2, 4, 2, 2])}
        steps = None if configuration == "baseline" else fields.pop("num_steps", 3)
        records = [
            record(
                f"{task}/{i}",
                [(1.0, 1), (1.0 + 20 / speed, 21)],
                configuration=configuration,
                task=task,
                token_ids=list(range(21)),
                **counted,
            )
            for i in range(6)
        ]
        info = CellInfo(
            configuration=configuration,
            task=task,
            concurrency=concurrency,
            request_rate=None,
            settings={"sampling": {"temperature": 0.0}, "api": "auto"},
            server={"speculative_num_steps": steps},
            environment={"cpu": "cpu", "date": "2026-01-01", "versions": {}, "commit": "c"},
            wall_seconds=6 * (1.0 + 20 / speed),
            conversations_left_out=0,
            cache_flushed=True,
        )
        return Cell(info.model_copy(update=fields), records)

    return make


@pytest.fixture
def filled():
    """Save cells as a finished benchmark has them; returns its directory."""

    def save(directory: Path, cells: Iterable[Cell]) -> Path:
        store = Store(directory)
        for one in cells:
            info = one.info
            store.save(cell_name(info.configuration, info.task, f"c{info.concurrency}"), one)
        return directory

    return save


@pytest.fixture
def ask():
    """Ask a server's /generate once, with three token ids as the prompt."""

    def answer(server, sampling: Sampling | None = None, **options):
        async def once():
            async with NativeEndpoint(server.url, **({"pause": 0.01} | options)) as endpoint:
                endpoint.encode = lambda messages: [1, 2, 3]
                hello = [{"role": "user", "content": "hello"}]
                return await endpoint.answer(hello, sampling or Sampling())

        return asyncio.run(once())

    return answer
