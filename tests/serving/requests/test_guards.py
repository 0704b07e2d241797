"""What is put in place in which process, in one call each.

That a guard works, and works twice, is shown by the file of its name.
Alone: pytest tests/serving/requests/test_guards.py
"""

import pytest

from fastmtp_sglang.serving import weight_updates
from fastmtp_sglang.serving.requests import (
    control_calls,
    guards,
    memory_release,
    profiling,
    request_limits,
    sessions,
)


@pytest.fixture
def installed(monkeypatch) -> list[tuple]:
    """Which guards were asked for, and with which device."""
    seen = []
    for module, name in (
        (request_limits, "install"),
        (control_calls, "install_in_tokenizer_manager"),
        (control_calls, "install_in_scheduler"),
        (memory_release, "install"),
        (profiling, "install"),
        (sessions, "install"),
        (weight_updates, "install"),
    ):
        short = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(
            module, name, lambda short=short, **device: seen.append((short, *device.values()))
        )
    return seen


def test_in_the_process_that_takes_requests(installed):
    guards.install_in_tokenizer_manager()
    assert installed == [("request_limits",), ("control_calls",)]


@pytest.mark.parametrize("on_a_cpu", [True, False])
def test_in_the_scheduler(installed, on_a_cpu):
    guards.install_in_scheduler(on_a_cpu=on_a_cpu)
    assert set(installed) == {
        ("control_calls",),
        ("memory_release",),
        ("profiling", on_a_cpu),
        ("sessions",),
        ("weight_updates", on_a_cpu),
    }


def test_the_table_is_whole():
    """A row of docs/limits.md has what is asked for and what is said; the issue may be missing."""
    for asked, said, issue in guards.GUARDED:
        assert asked
        assert "400" in said or said == "works"
        assert not issue or "#" in issue
