"""In which order configurations, tasks and loads are measured, and when servers run.

Alone: pytest tests/benchmarks/test_runs.py
"""

import contextlib

import pytest

from fastmtp_benchmarks import runs
from fastmtp_benchmarks.configurations import Configuration
from fastmtp_benchmarks.endpoint import Sampling
from fastmtp_benchmarks.load import Level
from fastmtp_benchmarks.runs import Plan
from fastmtp_benchmarks.tasks import Conversation, Task


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """What a run does, with nothing served, measured or written."""
    seen: list[str] = []

    @contextlib.contextmanager
    def served(configuration, plan, say):
        seen.append(f"start {configuration.name}")
        yield configuration.name, None
        seen.append(f"stop {configuration.name}")

    async def measure(plan, store, url, check, cells, say, on_record):
        seen.extend(f"{url} {wanted.task.name} {wanted.level.concurrency}" for wanted in cells)

    def report(output, command, *, plots, **_):
        seen.append("plots" if plots else "report")
        return []

    monkeypatch.setattr(runs, "_served", served)
    monkeypatch.setattr(runs, "_measure", measure)
    monkeypatch.setattr(runs, "write_report", report)
    return seen


def plan(output, *, side_by_side: bool) -> Plan:
    return Plan(
        output=output,
        configurations=[Configuration(name, url=f"http://{name}") for name in ("a", "b")],
        tasks=[Task(name, (Conversation("0", ("Hello",)),)) for name in ("qa", "rag")],
        levels=[Level(concurrency=1), Level(concurrency=8)],
        sampling=Sampling(max_new_tokens=4),
        command="test",
        side_by_side=side_by_side,
    )


def test_one_after_the_other(tmp_path, events):
    runs.run(plan(tmp_path, side_by_side=False), print)
    assert events == [
        *("start a", "a qa 1", "a qa 8", "a rag 1", "a rag 8", "stop a", "report"),
        *("start b", "b qa 1", "b qa 8", "b rag 1", "b rag 8", "stop b", "plots"),
    ]


def test_side_by_side(tmp_path, events):
    """Neighbours in time are what is compared: one task at one load in all configurations."""
    runs.run(plan(tmp_path, side_by_side=True), print)
    assert events == [
        *("start a", "start b"),
        *("a qa 1", "b qa 1", "a rag 1", "b rag 1", "a qa 8", "b qa 8", "a rag 8", "b rag 8"),
        *("stop b", "stop a", "plots"),
    ]
