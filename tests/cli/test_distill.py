"""`fastmtp distill` as a process: kill -9, refusals, and what it prints.

Alone: pytest tests/cli/test_distill.py
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastmtp_sglang.cli import app
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.catalog import SMOLLM2

pytestmark = pytest.mark.heavy

_MAIN = "from fastmtp_sglang.cli import main; main()"


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"turns": [f"a{i}", f"b{i}"]}) + "\n" for i in range(30)))
    return path


@pytest.fixture
def command(endpoint, rows, tmp_path) -> list[str]:
    return [
        *("distill", "--model", str(SMOLLM2.checkpoint()), "--prompts", str(rows)),
        *("--endpoint", endpoint.url, "--output", str(tmp_path / "out")),
        *("--concurrency", "4", "--shard-size", "7", "--max-new-tokens", "50"),
    ]


def invoke(*arguments: str):
    return CliRunner().invoke(app, arguments)


def answered_in(directory: Path) -> set[str]:
    """The ids of the whole lines of a run that may be going on."""
    ids = set()
    for file in directory.glob("shard-*"):
        with contextlib.suppress(FileNotFoundError):  # its journal has just become a shard
            ids |= {json.loads(line)["id"] for line in file.read_text().split("\n")[:-1]}
    return ids


def test_kill_9_loses_and_repeats_nothing(endpoint, command, tmp_path, read_lines):
    out = tmp_path / "out"
    endpoint.seconds = 0.15
    answered: set[str] = set()
    for wanted in (9, 31):  # killed twice, in the middle of a shard
        process = subprocess.Popen([sys.executable, "-c", _MAIN, *command])
        while len(answered) < wanted and process.poll() is None:
            time.sleep(0.02)
            answered = answered_in(out)
        assert process.poll() is None
        process.kill()
        process.wait()
        answered = answered_in(out)
    endpoint.seconds = 0.0
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    ids = [record["id"] for record in read_lines(out)]
    assert len(ids) == len(set(ids)) == 60
    assert answered <= set(ids)
    # Only what was in flight when the kill came is asked again.
    assert sum(endpoint.prompts().values()) <= 60 + 2 * 4
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["counts"]["answers"] == 60

    before = len(endpoint.requests)
    assert invoke(*command).exit_code == 0
    assert len(endpoint.requests) == before  # a finished run asks nobody
    with pytest.raises(FastMTPError, match=r"--temperature, .* was .*0\.6.* and is .*0\.7"):
        app([*command, "--temperature", "0.7"], standalone_mode=False)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_kill_ends_the_run_and_says_how_to_go_on(endpoint, command, tmp_path, number):
    endpoint.seconds = 0.15
    process = subprocess.Popen(
        [sys.executable, "-c", _MAIN, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background lets its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not answered_in(tmp_path / "out"):
        time.sleep(0.02)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    assert "the same command goes on" in output
    assert "Traceback" not in errors
    assert invoke(*command).exit_code == 0
    assert len(answered_in(tmp_path / "out")) == 60


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGHUP,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(endpoint, command, tmp_path, number):
    """`nohup fastmtp distill ... &` outlives its terminal."""
    endpoint.seconds = 0.15
    process = subprocess.Popen(
        [sys.executable, "-c", _MAIN, *command],
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(number, signal.SIG_IGN),
    )
    while process.poll() is None and not answered_in(tmp_path / "out"):
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    assert len(answered_in(tmp_path / "out")) == 60


def test_summary_counts_and_shows_languages(endpoint, command):
    endpoint.answer = lambda text, _: "这是一个关于长城的很长的回答。" * 2
    endpoint.cut = lambda text: "a1" in text
    result = invoke(*command)
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "49 answers with" in words
    assert "38 finished, 11 cut by length and kept" in words
    assert "zh" in words
    assert "100.0 %" in words


def test_nothing_answered_is_an_error(endpoint, command):
    endpoint.replies = [(400, {"error": "no"})] * 60
    with pytest.raises(FastMTPError, match=r"nothing was answered.*skipped\.journal"):
        app(command, standalone_mode=False)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["--self-prompt", "3"], "one of them, not both"),
        (["--temperature", "-1"], r"--temperature -1\.0: must be from 0"),
        (["--top-k", "0"], "--top-k 0: must be at least 1, or -1"),
        (["--top-p", "0"], r"--top-p 0\.0: must be above 0"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0: must be at least 1"),
        (["--prompt-top-p", "2"], r"--prompt-top-p 2\.0"),
        (["--prompt-top-k", "0"], r"--prompt-top-k 0"),
        (["--endpoint", "localhost:30000"], "must begin with http"),
        (["--model", "/no/such/model"], "no such directory"),
        (["--prompts", "/no/such.jsonl"], "no such file"),
        (["--prompt-starts", "starts.txt"], "--prompt-starts has no effect with --prompts"),
        (["--", "--tp-size", "2"], "--tp-size after -- has no effect with --endpoint"),
    ],
)
def test_refusals_come_before_any_request(endpoint, command, tmp_path, changes, reason):
    with pytest.raises(FastMTPError, match=reason):
        app([*command, *changes], standalone_mode=False)
    assert endpoint.requests == []
    assert not (tmp_path / "out").exists()


def test_neither_prompts_nor_self_prompt(tmp_path):
    with pytest.raises(FastMTPError, match="--prompts and --self-prompt: give one of them"):
        app(["distill", "--model", "smollm2", "--output", str(tmp_path)], standalone_mode=False)


def test_what_would_be_ignored_is_refused(tmp_path):
    base = ["distill", "--model", "smollm2", "--output", str(tmp_path), "--self-prompt", "2"]
    for extra in (["--samples", "2"], ["--limit", "2"]):
        with pytest.raises(FastMTPError, match=f"{extra[0]} has no effect with --self-prompt"):
            app([*base, *extra], standalone_mode=False)
