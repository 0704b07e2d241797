"""Counters of the router as a line of the log and as Prometheus counters, without waiting.

Alone: pytest tests/serving/routing/test_routing_log.py
"""

import logging
from types import SimpleNamespace

import pytest
import torch
from prometheus_client import REGISTRY

from fastmtp_sglang.serving.routing import routing_log
from fastmtp_sglang.serving.routing.router import Count
from fastmtp_sglang.serving.routing.routing_log import RoutingLog

NAMES = ("en", "zh", "full")


class Router:
    """Counters that a test sets; what is read of `router.Router`."""

    names = NAMES

    def __init__(self) -> None:
        self.counted = torch.zeros(len(Count), len(NAMES), dtype=torch.int64)

    def counts(self) -> torch.Tensor:
        return self.counted.clone()

    def count(self, name: str, *numbers: int, avoided: int = 0) -> None:
        self.counted[:, NAMES.index(name)] += torch.tensor([*numbers, avoided])


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
def lines(caplog):
    """Lines that were written since the last look."""
    caplog.set_level(logging.INFO, logger=routing_log.__name__)

    def read() -> list[str]:
        written = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return written

    return read


def test_a_line_says_what_is_new_of_each_list(router, lines):
    log = RoutingLog(router, 2, with_metrics=False)
    router.count("zh", 9, 6, 1, 2, 0, avoided=4)
    log.step()
    assert lines() == []
    log.step()
    assert lines() == [
        "Draft lists: zh accepted 67% of 9 drafts, misses 1 (4 avoided), re-routed here 2, "
        "fallbacks 0."
    ]
    router.count("zh", 3, 0, 0, 0, 1)
    router.count("full", 0, 0, 0, 1, 0)
    log.step()
    log.step()
    assert lines() == [
        "Draft lists: zh accepted 0% of 3 drafts, misses 0 (0 avoided), re-routed here 0, "
        "fallbacks 1; "
        "full accepted 0 of 0 drafts, misses 0 (0 avoided), re-routed here 1, fallbacks 0."
    ]


def test_nothing_is_said_of_nothing(router, lines):
    log = RoutingLog(router, 1, with_metrics=False)
    log.step()
    assert lines() == []


def test_a_copy_that_is_late_is_written_when_it_arrives(router, lines, monkeypatch):
    """And none is begun meanwhile: what comes later is in the next line."""
    started = []

    def start(counts):
        started.append(SimpleNamespace(tensor=counts, late=True))
        started[-1].arrived = lambda copy=started[-1]: not copy.late
        return started[-1]

    monkeypatch.setattr(routing_log.HostCopy, "start", start)
    log = RoutingLog(router, 2, with_metrics=False)
    router.count("en", 4, 4, 0, 0, 0)
    for _ in range(4):
        log.step()
    router.count("en", 100, 0, 0, 0, 0)
    assert (len(started), lines()) == (1, [])
    started[0].late = False
    log.step()
    assert "en accepted 100% of 4 drafts" in lines()[0]
    log.step()
    started[1].late = False
    log.step()
    assert "en accepted 0% of 100 drafts" in lines()[0]


def test_prometheus_counts_the_same(router):
    log = RoutingLog(router, 1, with_metrics=True)
    try:
        router.count("en", 9, 6, 1, 2, 3, avoided=5)
        log.step()
        router.count("en", 1, 1, 0, 0, 0)
        log.step()

        def value(count: Count, name: str) -> float | None:
            metric = f"fastmtp:draft_list_{count.name.lower()}_total"
            return REGISTRY.get_sample_value(metric, {"list": name})

        assert [value(count, "en") for count in Count] == [10, 7, 1, 2, 3, 5]
        assert value(Count.DRAFTED, "zh") is None
    finally:
        for metric in log._metrics.values():
            REGISTRY.unregister(metric)
