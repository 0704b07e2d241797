"""`fastmtp doctor`: what is printed of what `doctor.diagnosis` finds, and the exit code.

Alone: pytest tests/cli/test_doctor.py
"""

import json

import pytest
import typer
from plain_machine import plain_cpu_machine  # noqa: F401
from typer.testing import CliRunner

from fastmtp_sglang.cli import doctor
from fastmtp_sglang.errors import FastMTPError

pytestmark = pytest.mark.usefixtures("plain_cpu_machine")


def run(*arguments: str):
    app = typer.Typer()
    app.command()(doctor.doctor)
    return CliRunner().invoke(app, arguments)


@pytest.mark.heavy
def test_a_sound_machine():
    result = run()
    assert result.exit_code == 0, result.stdout
    assert result.stdout.splitlines()[-1] == "no problems"
    for name in ("sglang: 0.5", "SGLang hooks: all", "entry point fastmtp", "device: cpu"):
        assert name in result.stdout


def test_a_problem_has_its_fix_beside_it(monkeypatch):
    monkeypatch.setenv("SGLANG_PLUGINS", "other")
    result = run()
    assert result.exit_code == 1
    line = next(i for i, text in enumerate(result.stdout.splitlines()) if "problem" in text)
    assert "fix: export SGLANG_PLUGINS=" in result.stdout.splitlines()[line + 1]
    assert "registration" not in result.stdout  # it would only repeat what is known


def test_json(monkeypatch):
    report = json.loads(run("--json").stdout)
    assert report["problems"] == 0
    assert {"name": "registration", "found": "available", "fix": None} in report["checks"]
    monkeypatch.setenv("SGLANG_PLUGINS", "fastmtp")
    result = run("--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["problems"] == 1


def test_draft_without_model():
    result = run("--draft", "d")
    assert isinstance(result.exception, FastMTPError)
