"""How terms are accepted: by an option of any command, or in the environment.

Alone: pytest tests/models/test_license.py
"""

import os

import pytest
import typer
from typer.testing import CliRunner

from fastmtp_sglang.models.license import AcceptLicense, is_accepted

VARIABLE = "FASTMTP_ACCEPT_LICENSE"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    # Set first, so that what a command does to it is undone too.
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)


@pytest.mark.parametrize(
    ("given", "accepted"),
    [("", False), ("gemma3", False), ("gemma3-270m", True), ("a,gemma3-270m", True), ("*", True)],
)
def test_the_environment_names_models(monkeypatch, given, accepted):
    assert not is_accepted("gemma3-270m")
    monkeypatch.setenv(VARIABLE, given)
    assert is_accepted("gemma3-270m") == accepted


def test_the_option_is_for_the_command_and_what_it_starts():
    app = typer.Typer()

    @app.command()
    def run(accept_license: AcceptLicense = False) -> None:
        print(is_accepted("gemma3-270m"), os.environ.get(VARIABLE))

    assert CliRunner().invoke(app, []).stdout.split() == ["False", "None"]
    assert CliRunner().invoke(app, ["--accept-license"]).stdout.split() == ["True", "*"]


def test_commands_that_take_a_model_have_the_option():
    from fastmtp_sglang.cli import app

    for command in ("serve", "demo", "distill", "train", "bench", "export", "doctor"):
        assert "--accept-license" in CliRunner().invoke(app, [command, "--help"]).stdout, command
    for command in (("vocab", "build"), ("vocab", "import"), ("head", "init"), ("bench", "sweep")):
        assert "--accept-license" in CliRunner().invoke(app, [*command, "--help"]).stdout, command
