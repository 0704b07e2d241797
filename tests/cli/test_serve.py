"""`fastmtp serve`: the command that it prints is the command that it becomes.

Alone: pytest tests/cli/test_serve.py
"""

import shlex
import socket
from pathlib import Path

import pytest
import tiny_models as models
import typer
from typer.testing import CliRunner

from fastmtp_sglang.cli import serve
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.built_in import DraftHead, serve_flags
from fastmtp_sglang.models.catalog import GEMMA3_270M, SMOLLM2
from fastmtp_sglang.servers import address, server_process
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME

SPECULATION = ["--speculative-algorithm", "FASTMTP"]


@pytest.fixture(autouse=True)
def sglang(monkeypatch):
    monkeypatch.setattr(server_process, "launch_prefix", lambda: ["sglang", "serve"])
    monkeypatch.setattr(address, "_SGLANG_PORT", "0")  # another server may run here


@pytest.fixture
def run(monkeypatch):
    """Run the command line; returns the result and the command that it became, if any."""
    app = typer.Typer()
    app.command()(serve.serve)

    def run(*arguments: str):
        became = []
        monkeypatch.setattr(serve.os, "execvp", lambda file, argv: became.append((file, argv)))
        result = CliRunner().invoke(app, arguments)
        return result, became

    return run


def test_prints_and_becomes_the_same_command(run):
    result, became = run("Qwen/Qwen3-8B", "--draft", "org/head", "--num-steps", "2")
    expected = [
        *("sglang", "serve", "--model-path", "Qwen/Qwen3-8B", *SPECULATION),
        *("--speculative-draft-model-path", "org/head", "--speculative-num-steps", "2"),
    ]
    assert result.exit_code == 0
    assert shlex.split(result.stdout) == expected
    assert became == [("sglang", expected)]


def test_the_printed_command_is_quoted_for_a_shell(run):
    result, _ = run("org/m", "--dry-run", "--", "--json-model-override-args", '{"a": 1}')
    assert """--json-model-override-args '{"a": 1}'""" in result.stdout


def test_dry_run_only_prints(run):
    result, became = run("org/m", "--dry-run")
    assert result.stdout.strip() == "sglang serve --model-path org/m " + " ".join(SPECULATION)
    assert became == []


def test_sglang_flags_pass_through_and_come_last(run):
    result, _ = run(
        "org/m", "--num-steps", "2", "--dry-run", "--", "--speculative-num-steps", "4", "--tp", "2"
    )
    assert result.stdout.split()[-6:] == [
        *("--speculative-num-steps", "2", "--speculative-num-steps", "4", "--tp", "2"),
    ]


def test_baseline(run):
    result, _ = run("org/m", "--no-speculation", "--dry-run", "--", "--tp", "2")
    assert result.stdout.split() == ["sglang", "serve", "--model-path", "org/m", "--tp", "2"]


@pytest.mark.parametrize(
    "option", [("--draft", "org/h"), ("--num-steps", "2"), ("--vocabulary", "v.safetensors")]
)
def test_baseline_refuses_what_it_would_ignore(run, option):
    result, became = run("org/m", "--no-speculation", *option)
    assert isinstance(result.exception, FastMTPError)
    assert f"{option[0]} {option[1]} has no effect with --no-speculation" in str(result.exception)
    assert became == []


def test_vocabulary(run, tmp_path):
    file = tmp_path / "en.safetensors"
    result, _ = run("org/m", "--vocabulary", str(file))
    assert f"--vocabulary {file} is not a file" in str(result.exception)
    file.write_bytes(b"")
    result, _ = run("org/m", "--vocabulary", str(file), "--dry-run")
    assert shlex.split(result.stdout)[-2:] == ["--speculative-token-map", str(file)]


@pytest.mark.parametrize("flag", ["--model-path", "--model-path=x", "--model"])
def test_a_second_model_is_refused(run, flag):
    result, _ = run("org/m", "--", flag, "x")
    assert str(result.exception).startswith(f"{flag} after -- repeats MODEL org/m")


@pytest.mark.parametrize("value", ["./none", "/none", "~/none", "a/b/c"])
@pytest.mark.parametrize("name", ["MODEL", "--draft"])
def test_a_missing_directory_is_never_a_download(run, name, value):
    result, _ = run(*([value] if name == "MODEL" else ["org/m", "--draft", value]))
    assert f"{name} {value} is not a directory" in str(result.exception)


def test_an_existing_directory_is_taken_as_it_is(run, tmp_path):
    result, _ = run(str(tmp_path), "--dry-run")
    assert shlex.split(result.stdout)[3] == str(tmp_path)


def test_a_draft_of_another_target_is_refused_before_sglang_starts(run, tmp_path):
    models.target(tmp_path / "target", "llama")
    models.target(tmp_path / "other", "qwen2")
    result, became = run(str(tmp_path / "target"), "--draft", str(tmp_path / "other"))
    assert isinstance(result.exception, FastMTPError)
    assert "no MTP head" in str(result.exception)
    assert not became


@pytest.mark.heavy
@pytest.mark.parametrize("place", ["--vocabulary", "a flag", "beside"])
def test_a_draft_vocabulary_that_does_not_fit_is_refused_before_sglang_starts(run, tmp_path, place):
    models.target(tmp_path / "target", "llama")
    models.random_head(tmp_path / "target", tmp_path / "head")
    path = tmp_path / ("head/" + FILE_NAME if place == "beside" else "v.safetensors")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"no vocabulary")
    given = {
        "--vocabulary": ["--vocabulary", str(path)],
        "a flag": ["--", "--speculative-token-map", str(path)],
        "beside": [],
    }[place]
    arguments = [str(tmp_path / "target"), "--draft", str(tmp_path / "head")]
    result, became = run(*arguments, *given)
    assert isinstance(result.exception, FastMTPError)
    assert f"draft vocabulary {path}: not a safetensors file" in str(result.exception)
    assert not became


@pytest.mark.parametrize("spelling", [("--port", "{}"), ("--port=1", "--port={}")])
def test_a_port_in_use_is_refused_before_sglang_starts(run, spelling):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        flags = [part.format(port) for part in spelling]
        result, became = run("org/m", "--", *flags)
        assert f"--port {port} is in use on 127.0.0.1" in str(result.exception)
        assert not became
        # SGLang's own reading of the flags decides, and so does a file.
        assert run("org/m", "--", *flags, "--port", "0")[1]
        assert run("org/m", "--", "--config", "serve.yaml")[1]


def test_num_steps_below_one_is_a_usage_error(run):
    result, became = run("org/m", "--num-steps", "0")
    assert result.exit_code == 2
    assert became == []


def test_the_embedded_model(run, embedded):
    result, _ = run("smollm2", "--dry-run")
    assert shlex.split(result.stdout) == [
        *("sglang", "serve", "--model-path", "/cache/smollm2"),
        *(*serve_flags(), *SPECULATION),
        *("--speculative-draft-model-path", "/cache/head"),
    ]
    assert "untrained" not in result.stderr


def test_each_built_in_model_has_its_own_name(run, monkeypatch):
    monkeypatch.setattr(GEMMA3_270M, "checkpoint", lambda progress: Path("/cache/gemma"))
    made = DraftHead(Path("/cache/its-head"), trained=False)
    monkeypatch.setattr(GEMMA3_270M, "draft_head", lambda num_steps, progress: made)
    result, _ = run("gemma3-270m", "--dry-run")
    assert "--model-path /cache/gemma --dtype bfloat16" in result.stdout
    assert "--speculative-draft-model-path /cache/its-head" in result.stdout


def test_the_dtype_of_the_embedded_model_is_said(run, embedded):
    result, _ = run("smollm2", "--dry-run")
    assert shlex.split(result.stdout)[4:6] == ["--dtype", "bfloat16"]
    assert result.stderr == "serving in bfloat16; --dtype overrides\n"


@pytest.mark.parametrize("given", [("--dtype", "float32"), ("--", "--dtype", "float32")])
def test_a_dtype_given_by_hand_wins(run, embedded, given):
    result, _ = run("smollm2", "--dry-run", *given)
    assert "bfloat16" not in result.stdout + result.stderr
    result, _ = run("org/m", "--dry-run", *given)
    assert "--dtype float32" in result.stdout


def test_the_embedded_head_says_how_many_steps_pay(run, monkeypatch):
    made = DraftHead(Path("/cache/head"), trained=True, num_steps=2)
    monkeypatch.setattr(SMOLLM2, "draft_head", lambda num_steps, progress: made)
    for given, steps in (((), "2"), (("--num-steps", "5"), "5")):
        result, _ = run("smollm2", *given, "--dry-run")
        assert shlex.split(result.stdout)[-2:] == ["--speculative-num-steps", steps]


def test_an_untrained_head_is_announced_beside_the_command(run, embedded):
    embedded(trained=False)
    result, _ = run("smollm2", "--dry-run")
    assert "untrained" in result.stderr
    assert "untrained" not in result.stdout


def test_the_embedded_model_with_another_head_and_without_one(run, embedded):
    result, _ = run("smollm2", "--draft", "org/head", "--dry-run")
    assert shlex.split(result.stdout)[-1] == "org/head"
    result, _ = run("smollm2", "--no-speculation", "--dry-run")
    assert "speculative" not in result.stdout
