"""What every result says of the machine and the commit behind it.

Alone: pytest tests/benchmarks/test_environment.py
"""

import importlib.metadata
import json
import subprocess
from types import SimpleNamespace

import pytest

from fastmtp_benchmarks import environment


@pytest.fixture
def git(monkeypatch):
    """A stand-in for git: set `changes` to what its status prints, or `error` to what it raises."""
    made = SimpleNamespace(changes="", error=None)

    def run(command, **_):
        if made.error is not None:
            raise made.error
        return SimpleNamespace(stdout=made.changes if "status" in command else "abc1234\n")

    monkeypatch.setattr(subprocess, "run", run)
    return made


def test_a_result_is_saved_with_where_it_comes_from(git, tmp_path):
    environment.save({"rows": [1]}, tmp_path / "sub" / "r.json", "fastmtp bench --x 1")
    saved = json.loads((tmp_path / "sub" / "r.json").read_text())
    assert list(saved) == ["command", "environment", "rows"]
    assert (saved["command"], saved["rows"]) == ("fastmtp bench --x 1", [1])
    assert saved["environment"]["versions"]["torch"] == importlib.metadata.version("torch")
    assert saved["environment"]["date"].endswith("+00:00")


def test_a_commit_with_local_changes_is_marked(git):
    assert environment.environment()["commit"] == "abc1234"
    git.changes = " M benchmarks/rows.py\n"
    assert environment.environment()["commit"] == "abc1234+"


@pytest.mark.parametrize("error", [OSError("no git"), subprocess.CalledProcessError(128, "git")])
def test_an_installed_wheel_has_no_commit(git, error):
    git.error = error
    assert environment.environment()["commit"] is None


def test_a_machine_without_sglang(git, monkeypatch):
    """Kernels are measured there too."""
    version = importlib.metadata.version

    def missing(name):
        if name == "sglang":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    versions = environment.environment()["versions"]
    assert versions["sglang"] is None
    assert versions["torch"] == version("torch")


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor: 0\nmodel name\t: A: fast one\nmodel name\t: B\n", "A: fast one"),
        ("processor: 0\n", "what platform says"),
        (None, "what platform says"),
    ],
)
def test_the_name_of_the_processor(monkeypatch, tmp_path, cpuinfo, name):
    """Linux on ARM does not name it, and other systems have no such file."""
    file = tmp_path / "cpuinfo"
    if cpuinfo is not None:
        file.write_text(cpuinfo)
    monkeypatch.setattr(environment, "Path", lambda path: file)
    monkeypatch.setattr(environment.platform, "processor", lambda: "what platform says")
    assert environment._cpu_name() == name
