"""The CPU platform steps in only where nobody else serves the machine.

Alone: pytest tests/serving/cpu/test_cpu.py
"""

import importlib.metadata
import os
import pkgutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
import torch
from sglang.srt.plugins import PLATFORM_PLUGINS_GROUP

from fastmtp_sglang.serving import cpu

OURS = EntryPoint(cpu.PLATFORM_NAME, "fastmtp_sglang.serving.cpu:activate", PLATFORM_PLUGINS_GROUP)


@pytest.fixture(autouse=True)
def plain_machine(monkeypatch):
    """No accelerator, no other platform plugin, no choice by the user."""
    for name in ("FASTMTP_CPU", "SGLANG_USE_CPU_ENGINE", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        # Set before it is deleted: so what `activate` sets is undone too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(cpu, "entry_points", lambda group: (OURS,))


@pytest.fixture
def other_plugin(monkeypatch):
    """Installs a second platform plugin whose function is the one given."""

    def install(function) -> None:
        module = ModuleType("another_platform")
        module.activate = function
        monkeypatch.setitem(sys.modules, "another_platform", module)
        other = EntryPoint("another", "another_platform:activate", PLATFORM_PLUGINS_GROUP)
        monkeypatch.setattr(cpu, "entry_points", lambda group: (other, OURS))

    return install


def test_a_plain_machine_is_ours():
    path = cpu.activate()
    assert path == cpu.PLATFORM_CLASS
    platform = pkgutil.resolve_name(path)()
    assert platform.is_out_of_tree()
    assert platform.device_type == "cpu"


def test_the_entry_point_is_installed():
    (entry,) = importlib.metadata.entry_points(group=PLATFORM_PLUGINS_GROUP, name=cpu.PLATFORM_NAME)
    assert entry.load() is cpu.activate


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("FASTMTP_CPU", "0", False),
        ("FASTMTP_CPU", "1", True),
        ("SGLANG_USE_CPU_ENGINE", "1", False),
        ("SGLANG_USE_CPU_ENGINE", "0", True),
    ],
)
def test_the_user_decides(monkeypatch, name, value, ours):
    monkeypatch.setenv(name, value)
    assert cpu.activate() == (cpu.PLATFORM_CLASS if ours else None)


def test_not_where_there_is_an_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert cpu.activate() is None
    assert "GOMP_SPINCOUNT" not in os.environ


def test_not_where_another_plugin_claims_the_machine(other_plugin):
    other_plugin(lambda: "another.platform.Class")
    assert cpu.activate() is None
    assert "GOMP_SPINCOUNT" not in os.environ


def test_another_plugin_that_does_not_claim_it(other_plugin):
    other_plugin(lambda: None)
    assert cpu.activate() == cpu.PLATFORM_CLASS


def test_another_plugin_that_crashes_claims_nothing(other_plugin):
    def crash():
        raise RuntimeError("libfancy.so.1 is missing")

    other_plugin(crash)
    assert cpu.activate() == cpu.PLATFORM_CLASS


def test_another_plugin_that_cannot_be_loaded_claims_nothing(monkeypatch):
    broken = EntryPoint("broken", "no_such_module:activate", PLATFORM_PLUGINS_GROUP)
    monkeypatch.setattr(cpu, "entry_points", lambda group: (broken, OURS))
    assert cpu.activate() == cpu.PLATFORM_CLASS


def test_our_own_entry_point_is_not_asked_again(monkeypatch):
    """It would call itself without end."""
    calls = []
    original = cpu._claimed_by_another_plugin

    def counted():
        calls.append(None)
        return original()

    monkeypatch.setattr(cpu, "_claimed_by_another_plugin", counted)
    assert cpu.activate() == cpu.PLATFORM_CLASS
    assert len(calls) == 1


def test_importing_it_costs_nothing():
    """SGLang loads the entry point on machines with accelerators too."""
    script = (
        "import sys, fastmtp_sglang.serving.cpu; "
        "print([m for m in ('torch', 'sglang', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr


def test_threads_do_not_spin_for_long():
    cpu.activate()
    assert os.environ["GOMP_SPINCOUNT"] == "20000"


@pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OMP_WAIT_POLICY"])
def test_how_threads_wait_is_the_users_choice(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    cpu.activate()
    assert os.environ.get("GOMP_SPINCOUNT") == ("1" if name == "GOMP_SPINCOUNT" else None)
