"""`fastmtp demo` from the command line to its exit code, with a stand-in for the servers.

The real demo is in tests/served. Alone: pytest tests/cli/test_demo.py
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fastmtp_sglang.cli import demo
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.built_in import DraftHead, serve_flags
from fastmtp_sglang.models.catalog import GEMMA3_270M
from fastmtp_sglang.servers import comparison, server_process

pytestmark = pytest.mark.heavy

FAKE = Path(__file__).parents[1] / "fake_sglang.py"


@pytest.fixture(autouse=True)
def stand_ins(embedded, monkeypatch, tmp_path):
    monkeypatch.setattr(server_process, "launch_prefix", lambda: [sys.executable, str(FAKE)])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # As this machine may be while the test runs.
    monkeypatch.setattr(comparison, "unsteadiness", lambda answers: 1.0)


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(demo.demo)
    before = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGHUP)}
    yield lambda *arguments: CliRunner().invoke(app, arguments)
    for name, handler in before.items():
        signal.signal(name, handler)


def test_identical_answers(run):
    result = run()
    assert result.exit_code == 0
    assert "Every answer is identical, token id by token id." in result.stdout
    assert "8 of 8" in result.stdout
    assert demo.PROMPTS[0][1] in result.stdout  # the live question
    for name, _ in demo.PROMPTS:
        assert name in result.stdout


@pytest.mark.parametrize("answers", ["", "differs"])
def test_the_table_fits_80_columns_and_the_rest_is_short(run, monkeypatch, answers):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FAKE_ANSWERS", answers)
    result = run()
    assert result.exit_code == (1 if answers else 0), result.exception
    lines = result.stdout.splitlines()
    (first,) = [number for number, line in enumerate(lines) if line.split()[:1] == ["prompt"]]
    (last,) = [number for number, line in enumerate(lines) if line.split()[:1] == ["all"]]
    assert max(map(len, lines[first : last + 3])) <= 80
    # A line a prompt: no cell is wrapped.
    assert last - first == len(demo.PROMPTS) + 3
    # As it may be now.
    busy = sum("This machine was busy" in line for line in lines)
    assert len(lines) - (last - first) <= 14 + busy


def test_json_is_the_only_thing_on_stdout(run):
    result = run("--json")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    summary = json.loads(line)
    assert list(summary) == [
        *("requests", "identical", "acceptance_length", "tokens_per_second", "speedup"),
    ]
    assert (summary["requests"], summary["identical"]) == (8, 8)
    assert summary["acceptance_length"] == 1.75  # 1 + 3 / 4, and not the server's own 2.0
    assert list(summary["tokens_per_second"]) == ["baseline", "fastmtp"]
    speeds = summary["tokens_per_second"]
    assert summary["speedup"] == pytest.approx(speeds["fastmtp"] / speeds["baseline"], rel=0.01)
    assert "Every answer is identical" in result.stderr


def test_a_different_answer_fails(run, monkeypatch):
    monkeypatch.setenv("FAKE_ANSWERS", "differs")
    result = run("--json")
    assert result.exit_code == 1
    summary = json.loads(result.stdout.splitlines()[-1])
    assert (summary["requests"], summary["identical"]) == (8, 7)  # one prompt contains "code"
    assert "1 of 8 answers differ" in result.stderr
    assert "no, from" in result.stderr


def test_missing_counters_are_an_error(run, monkeypatch):
    monkeypatch.setenv("FAKE_ANSWERS", "uncounted")
    result = run("--json")
    assert isinstance(result.exception, FastMTPError)
    assert "no speculation counters" in str(result.exception)
    assert result.stdout == ""


def test_an_untrained_head_is_admitted(run, embedded):
    assert "untrained" not in run().stdout
    embedded(trained=False)
    assert "The draft head is untrained" in run().stdout


def test_a_busy_machine_is_admitted(run, monkeypatch):
    assert "busy" not in run().stdout
    monkeypatch.setattr(comparison, "unsteadiness", lambda answers: 3.21)
    assert "the same work took up to 3.2x as long" in run().stdout


def test_flags_of_the_two_servers(run, monkeypatch, tmp_path):
    seen = []
    original = server_process.ServerProcess.__init__

    def spy(self, model, args=(), **kwargs):
        seen.append((model, list(args)))
        original(self, model, args, **kwargs)

    monkeypatch.setattr(server_process.ServerProcess, "__init__", spy)
    assert run("--num-steps", "1", "--draft", str(tmp_path), "--dtype", "bfloat16").exit_code == 0
    common = [*serve_flags("bfloat16"), "--disable-radix-cache"]
    assert seen == [
        (
            Path("/cache/smollm2"),
            [
                *common,
                *("--speculative-algorithm", "FASTMTP"),
                *("--speculative-draft-model-path", str(tmp_path)),
                *("--speculative-num-steps", "1"),
            ],
        ),
        (Path("/cache/smollm2"), common),
    ]


def test_a_base_model_goes_on_with_texts(run, monkeypatch):
    """Its prompts are sent as they are; BOS is the business of its tokenizer."""
    monkeypatch.setattr(GEMMA3_270M, "checkpoint", lambda progress: Path("/cache/gemma"))
    made = DraftHead(Path("/cache/head"), trained=False)
    monkeypatch.setattr(GEMMA3_270M, "draft_head", lambda num_steps, progress: made)
    asked, ask = [], comparison.ask

    def spy(url, prompt, *rest):
        asked.append(prompt)
        return ask(url, prompt, *rest)

    monkeypatch.setattr(comparison, "ask", spy)
    result = run("--model", "gemma3-270m")
    assert result.exit_code == 0, result.exception
    assert "Gemma 3 270M, greedy" in result.stdout
    assert "8 of 8" in result.stdout
    texts = [text for _, text in demo.CONTINUATIONS]
    assert asked == [texts[0], *texts, texts[0], *texts]


def test_another_model_is_refused(run):
    result = run("--model", "org/model")
    assert "--model org/model: the demo has prompts for smollm2 or gemma3" in str(result.exception)


def test_the_dtype_is_said(run):
    assert "serving in bfloat16; --dtype overrides" in run("--json").stderr
    assert "serving in" not in run("--dtype", "float32").stdout


def test_a_missing_draft_directory_is_a_usage_error(run, tmp_path):
    result = run("--draft", str(tmp_path / "none"))
    assert result.exit_code == 2


def test_a_server_that_does_not_start_shows_its_log(run, monkeypatch):
    monkeypatch.setenv("FAKE_DIES", "1")
    result = run()
    assert isinstance(result.exception, FastMTPError)
    assert "ValueError: this flag is wrong" in str(result.exception)


STOPPED = """
import signal
import sys
from pathlib import Path
import typer
from fastmtp_sglang.models.built_in import DraftHead
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.servers import server_process
from fastmtp_sglang.cli import demo

fake = sys.argv[1]
server_process.launch_prefix = lambda: [sys.executable, fake]
SMOLLM2.checkpoint = lambda progress: Path("m")
SMOLLM2.draft_head = lambda num_steps, progress: DraftHead(Path("h"), True)
original = server_process.ServerProcess.start

def start(self):
    self._on_wait = lambda *_: print(self.pid, flush=True)
    original(self)

server_process.ServerProcess.start = start
# A suite in the background of a shell inherits an ignored SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["demo", "--json"]
typer.run(demo.demo)
"""


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGHUP)),
    ],
)
def test_a_stopped_demo_leaves_no_server(number):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("under nohup it goes on")
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(FAKE)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "FAKE_SECONDS": "60"},
    ) as process:
        server = int(process.stdout.readline())
        os.kill(server, 0)
        process.send_signal(number)
        assert process.wait(60) != 0
    deadline = time.monotonic() + 30
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
