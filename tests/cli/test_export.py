"""`fastmtp export`: a head directory, or the head inside its target, and never half of both.

Alone: pytest tests/cli/test_export.py
"""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastmtp_sglang.cli import app
from fastmtp_sglang.errors import FastMTPError


@pytest.fixture
def made(monkeypatch) -> list[tuple]:
    """What would be exported and merged: name, arguments, options."""
    calls = []
    for name in ("export.export_head", "merge.merge_head"):
        monkeypatch.setattr(
            f"fastmtp_sglang.training.{name}",
            lambda *given, name=name, **options: calls.append((name, given, options)),
        )
    return calls


@pytest.fixture
def command(tmp_path) -> list[str]:
    (tmp_path / "target").mkdir()
    given = ["--target", str(tmp_path / "target"), "--out", str(tmp_path / "out")]
    return ["export", str(tmp_path / "head"), *given]


def test_a_head_directory(made, command, tmp_path):
    result = CliRunner().invoke(app, [*command, "--bf16", "--vocabulary", "v.safetensors"])
    assert result.exit_code == 0
    ((name, given, options),) = made
    assert (name, given) == ("export.export_head", (tmp_path / "head", tmp_path / "out"))
    assert options == {
        "target": tmp_path / "target",
        "vocabulary": Path("v.safetensors"),
        "bfloat16": True,
    }
    assert result.output == f"wrote {tmp_path / 'out'}\n"


def test_without_flags_the_head_stays_as_it_is(made, command):
    assert CliRunner().invoke(app, command).exit_code == 0
    ((_, _, options),) = made
    assert (options["vocabulary"], options["bfloat16"]) == (None, False)


def test_merged(made, command, tmp_path):
    result = CliRunner().invoke(app, [*command, "--merge"])
    assert result.exit_code == 0
    ((name, given, _),) = made
    assert name == "merge.merge_head"
    assert given == (tmp_path / "head", tmp_path / "target", tmp_path / "out")
    assert "as its MTP layer" in result.output


@pytest.mark.parametrize("flags", [["--bf16"], ["--vocabulary", "v.safetensors"]])
def test_what_a_merge_would_ignore_is_refused(made, command, flags):
    with pytest.raises(FastMTPError, match=r"--merge keeps the target's dtypes .* leave --bf16"):
        app([*command, "--merge", *flags], standalone_mode=False)
    assert made == []


@pytest.mark.parametrize("flags", [[], ["--merge"]])
def test_a_target_that_is_not_there(made, command, tmp_path, flags):
    (tmp_path / "target").rmdir()
    with pytest.raises(FastMTPError, match=r"--target .*target: no such directory"):
        app([*command, *flags], standalone_mode=False)
    assert made == []
