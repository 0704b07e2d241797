"""`fastmtp bench` from the command line to its files, against servers in threads.

Alone: pytest tests/cli/test_bench.py
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import streaming_server as pieces
import typer
from typer.testing import CliRunner

from fastmtp_benchmarks import connect, planning, report, runs
from fastmtp_sglang.cli import bench
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.built_in import DraftHead, serve_flags
from fastmtp_sglang.models.catalog import SMOLLM2

pytestmark = pytest.mark.heavy


class Tokenizer:
    """Characters as ids; the last message tells which question it was."""

    chat_template = "x"

    def apply_chat_template(self, messages, **_):
        return [ord(letter) for letter in messages[-1]["content"]]

    def encode(self, text, add_special_tokens):
        return [ord(letter) for letter in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch):
    for module in (connect, planning):
        monkeypatch.setattr(module, "load_tokenizer", lambda path, flag: Tokenizer())


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Stand in for the drawing, which takes seconds."""
    drawn = []
    monkeypatch.setattr(report, "draw_all", lambda rows, directory: drawn.append(directory))
    return drawn


_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    app = typer.Typer()
    app.add_typer(bench.app, name="bench")
    before = {name: signal.getsignal(name) for name in _SIGNALS}

    def invoke(*arguments, fails: str | None = None, code: int = 0):
        result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
        if fails is None:
            assert result.exit_code == code, result.output + repr(result.exception)
        else:
            assert isinstance(result.exception, FastMTPError), result.output
            assert fails in str(result.exception)
        return " ".join(result.output.split())

    yield invoke
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture
def prompts(tmp_path) -> Path:
    # Fewer than five conversations have no interval.
    rows = [{"id": f"q/{i}", "task": "qa", "turns": [f"who {i}"]} for i in range(5)]
    rows += [{"id": f"m/{i}", "task": "chat", "turns": ["a", "b"]} for i in range(2)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def two(servers):
    """A baseline of one token a chunk, and a server that accepts three drafts each time."""
    baseline, fastmtp = servers(), servers()
    ids = list(range(1, 14))
    meta = {
        "spec_verify_ct": 3,
        "spec_num_correct_drafts": 9,
        "spec_correct_drafts_histogram": [0, 0, 0, 3],
    }

    def slow(body):
        for end in range(1, 14):
            yield 0.01
            yield pieces.native(end, ids[:end], "ok", "stop" if end == 13 else None)

    def fast(body):
        for end in (1, 5, 9, 13):
            yield 0.01
            last = {"finish": "stop", **meta} if end == 13 else {}
            yield pieces.native(end, ids[:end], "ok", **last)

    baseline.answers, fastmtp.answers = slow, fast
    baseline.pages["/server_info"] = {"version": "0.5.23"}
    return baseline, fastmtp


def endpoints(two):
    baseline, fastmtp = two
    return ["--endpoint", f"baseline={baseline.url}", "--endpoint", f"mine={fastmtp.url}"]


def test_endpoints_to_report(run, two, prompts, tmp_path, drawn):
    out = tmp_path / "out"
    arguments = [*endpoints(two), "--task", prompts, "--output", out, "--concurrency", "1,4"]
    shown = run(*arguments)
    summary = json.loads((out / "summary.json").read_text())
    rows = {(r["configuration"], r["task"], r["concurrency"]): r for r in summary["rows"]}
    assert len(rows) == 8
    row = rows["mine", "qa", 1]
    assert (row["acceptance_length"], row["acceptance_per_step"]) == (4.0, [1.0, 1.0, 1.0])
    assert (row["requests"], row["identical"], row["failed"]) == (5, 5, 0)
    # 4 pauses of 10 ms against 13.
    assert 1.3 < row["speedup"] < 8
    assert row["speedup_interval"][0] <= row["speedup"] <= row["speedup_interval"][1]
    assert rows["baseline", "qa", 4]["acceptance_length"] is None
    assert rows["baseline", "qa", 1]["num_steps"] is None
    assert rows["mine", "qa", 1]["num_steps"] == 3
    assert summary["configurations"]["mine"]["server"]["version"] == "0.5.23"
    lines = (out / "requests" / "mine--chat--c1.jsonl").read_text().splitlines()
    assert len(lines) == 4
    assert json.loads(lines[0])["token_ids"] == list(range(1, 14))
    assert drawn == [out / "plots"]
    assert "/ 4.00" in shown
    assert (out / "report.md").exists()
    # Warm-up first, then the flush, then what is measured.
    assert two[1].paths[:3] == ["/generate", "/flush_cache", "/generate"]

    asked = [len(server.requests) for server in two]
    assert "8 of 8 measurements are finished and kept" in run(*arguments)
    assert [len(server.requests) for server in two] == asked
    run(*arguments, "--max-new-tokens", 5, fails="was measured with sampling")
    run(*arguments, "--rerun")
    assert [len(server.requests) for server in two] == [2 * count for count in asked]


def test_what_is_finished_survives_a_failure(run, two, prompts, tmp_path):
    out = tmp_path / "out"
    arguments = [*endpoints(two), "--task", prompts, "--output", out, "--retries", 0]
    answers = two[1].answers
    two[1].answers = lambda body: [None]
    run(*arguments, fails="mine, qa: all 5 requests failed, the first with")
    assert len(json.loads((out / "summary.json").read_text())["rows"]) == 2
    two[1].answers = answers
    asked = len(two[0].requests)
    assert "2 of 4 measurements are finished and kept" in run(*arguments)
    assert len(two[0].requests) == asked
    assert len(json.loads((out / "summary.json").read_text())["rows"]) == 4


def test_some_failures_are_shown(run, two, prompts, tmp_path):
    answers = two[1].answers

    def sometimes(body):
        return [None] if body["input_ids"] == [ord(c) for c in "who 3"] else answers(body)

    two[1].answers = sometimes
    out = tmp_path / "out"
    shown = run(*endpoints(two), "--task", prompts, "--output", out, "--retries", 0)
    assert "4 of 5 answered" in shown
    row = next(
        row
        for row in json.loads((out / "summary.json").read_text())["rows"]
        if (row["configuration"], row["task"]) == ("mine", "qa")
    )
    assert (row["failed"], row["pairs"], row["identical"]) == (1, 4, 4)
    # Its time is part of the run's, which the report says.
    assert 0 < row["lost_seconds"] < row["wall_seconds"]
    assert (
        "mine, qa, concurrency 1: failed requests and pauses took 0"
        in (out / "report.md").read_text()
    )


def test_tasks_whose_names_look_alike_have_their_own_rows(run, two, tmp_path):
    tasks = tmp_path / "tasks.jsonl"
    names = ("高中物理", "计算机网络", "mt bench", "mt-bench")
    rows = ({"task": name, "turns": [f"who {i}"]} for i, name in enumerate(names))
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    run(*endpoints(two), "--task", str(tasks), "--output", out)
    rows = json.loads((out / "summary.json").read_text())["rows"]
    assert {row["task"] for row in rows} == set(names)


class Started:
    """Stands in for `ServerProcess`: the fake server whose turn it is."""

    servers: list
    commands: list

    def __init__(self, model, args, log_path):
        self.server = self.servers.pop(0)
        self.url = self.server.url
        self.commands.append([model, *args])
        log_path.write_text("log")
        self.dead = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.commands.append("stopped")

    def check_alive(self):
        if self.dead:
            raise FastMTPError("the server ended with exit code 9")


@pytest.fixture
def started(monkeypatch, two, tmp_path):
    Started.servers, Started.commands = list(two), []
    monkeypatch.setattr(runs, "ServerProcess", Started)
    monkeypatch.setattr(SMOLLM2, "checkpoint", lambda *_: Path("/cache/smollm2"))
    head = tmp_path / "head"
    head.mkdir()
    monkeypatch.setattr(SMOLLM2, "draft_head", lambda *_, **__: DraftHead(head, trained=True))
    return Started


def test_servers_are_started_one_after_the_other(run, started, prompts, tmp_path):
    out = tmp_path / "out"
    run("--task", prompts, "--output", out, "--limit", 5, "--sglang-flags=--page-size 16")
    first, stopped, second, _ = started.commands
    common = ["/cache/smollm2", *serve_flags()]
    assert first == [*common, "--page-size", "16"]
    assert stopped == "stopped"
    assert second[: len(common)] == common
    assert "FASTMTP" in second
    assert second[-2:] == ["--page-size", "16"]
    assert (out / "logs" / "fastmtp.log").read_text() == "log"
    run("--task", prompts, "--output", out, "--limit", 5, "--sglang-flags=--page-size 16")
    assert len(started.commands) == 4  # all finished: no server is started


def test_what_a_dying_server_answered_is_not_kept(run, started, prompts, tmp_path, monkeypatch):
    def dead(self):
        raise FastMTPError("the server ended with exit code 9")

    monkeypatch.setattr(Started, "check_alive", dead)
    run("--task", prompts, "--output", tmp_path / "out", fails="exit code 9")
    assert not (tmp_path / "out" / "requests").exists()
    assert started.commands[-1] == "stopped"


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_kill_stops_the_server_and_keeps_what_is_finished(
    run, started, two, prompts, tmp_path, ctrl_c
):
    """Also of a job that a shell started in the background, which ignores Ctrl-C."""
    signal.signal(signal.SIGINT, ctrl_c)
    answers = two[0].answers

    def killed(body):
        if len(two[0].requests) > 6:  # in the second task
            os.kill(os.getpid(), signal.SIGTERM)
        return answers(body)

    two[0].answers = killed
    run("--task", prompts, "--output", tmp_path / "out", code=128 + signal.SIGTERM)
    assert started.commands[-1] == "stopped"
    finished = sorted(path.name for path in (tmp_path / "out" / "requests").iterdir())
    assert finished == ["baseline--qa--c1.json", "baseline--qa--c1.jsonl"]


def test_sweep(run, started, two, prompts, tmp_path):
    started.servers = [two[0], two[1], two[1]]
    out = tmp_path / "out"
    run("sweep", "--num-steps", "1,3", "--task", f"qa={prompts}", "--limit", 5, "--output", out)
    rows = json.loads((out / "summary.json").read_text())["rows"]
    assert [row["configuration"] for row in rows] == ["baseline", "k1-full", "k3-full"]
    assert [command[-1] for command in started.commands[2::2]] == ["1", "3"]


def test_sweep_over_trees(run, started, two, prompts, tmp_path):
    started.servers = [two[0], two[1], two[1]]
    out = tmp_path / "out"
    given = ["--task", f"qa={prompts}", "--limit", 5, "--output", out]
    run("sweep", "--shapes", "2x1,3x8x16", *given)
    rows = json.loads((out / "summary.json").read_text())["rows"]
    assert [row["configuration"] for row in rows] == ["baseline", "k2-full", "3x8x16-full"]
    assert "--speculative-eagle-topk" not in started.commands[2]
    assert started.commands[4][-4:] == [
        *("--speculative-eagle-topk", "8", "--speculative-num-draft-tokens", "16")
    ]


def test_a_throughput_shape(run, two, prompts, tmp_path):
    out = tmp_path / "out"
    run(
        *endpoints(two), "--tokenizer", "x", "--shape", "16x13", "--task", prompts,
        "--limit", 5, "--output", out,
    )  # fmt: skip
    (row, _) = json.loads((out / "summary.json").read_text())["rows"]
    assert (row["task"], row["requests"]) == ("throughput 16x13", 5)
    measured = two[0].requests[-1]
    assert len(measured["input_ids"]) == 16
    assert measured["sampling_params"]["ignore_eos"]
    assert measured["sampling_params"]["max_new_tokens"] == 13


def test_poisson_arrivals(run, two, prompts, tmp_path):
    out = tmp_path / "out"
    run(*endpoints(two), "--task", f"qa={prompts}", "--rate", "200", "--output", out)
    (row, _) = json.loads((out / "summary.json").read_text())["rows"]
    assert (row["concurrency"], row["request_rate"], row["requests"]) == (None, 200.0, 9)


def test_of_several_runs_the_fastest_counts(run, two, prompts, tmp_path):
    """The first answer to each question is slow, the second is not."""
    asked = []

    def unsteady(body):
        asked.append(body["input_ids"])
        yield 0.8 if asked.count(body["input_ids"]) == 1 else 0.0
        yield from pieces.native_answer([1, 2, 3])

    two[0].answers = unsteady
    out = tmp_path / "out"
    url = two[0].url
    run(
        "--endpoint", f"baseline={url}", "--task", f"qa={prompts}", "--limit", 3,
        "--repeats", 2, "--output", out,
    )  # fmt: skip
    (row,) = json.loads((out / "summary.json").read_text())["rows"]
    assert row["requests"] == 3
    assert row["first_token_milliseconds"]["p99"] < 800
    assert two[0].paths.count("/flush_cache") == 2
    assert "Of 2 runs the fastest" in (out / "report.md").read_text()


def test_the_key_is_sent_and_not_kept(run, two, prompts, tmp_path):
    for server in two:
        server.key = "secret-key"
    out = tmp_path / "out"
    arguments = [*endpoints(two), "--task", prompts, "--output", out]
    run(*arguments, "--api-key", "wrong", fails="--api-key: http")
    run(*arguments, "--api-key", "secret-key")
    for path in out.rglob("*.*"):
        if path.is_file():
            assert b"secret" not in path.read_bytes()


def test_compare(run, two, prompts, tmp_path):
    out = tmp_path / "out"
    run(*endpoints(two), "--task", prompts, "--output", out)
    assert "5 of 5" in run("compare", f"{out}:baseline", f"{out}:mine")
    compared = json.loads(run("compare", f"{out}:baseline", f"{out}:mine", "--json"))
    assert {row["task"] for row in compared["rows"]} == {"qa", "chat"}
    assert all(row["speedup"] > 1.2 for row in compared["rows"])
    assert compared["notes"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output: give a directory"),
        (["--output", "o"], "--task: give what to ask"),
        (["--output", "o", "--task", "nowhere.jsonl"], "--task nowhere.jsonl: no such file"),
        (["--output", "o", "--concurrency", "0"], "--concurrency 0: give numbers above 0"),
        (["--output", "o", "--concurrency", "1,x"], "--concurrency 1,x: give numbers above 0"),
        (["--output", "o", "--rate", "nan"], "--rate nan: give numbers above 0"),
        (["--output", "o", "--rate", "1", "--concurrency", "1"], "--concurrency and --rate"),
        (["--sglang-flags", "'"], "--sglang-flags ': its quotes do not close"),
        (["--endpoint", "x"], "--endpoint x: give NAME=URL"),
        (
            ["--endpoint", "a=http://x", "--num-steps", "3"],
            "--num-steps has no effect with --endpoint",
        ),
        (
            ["--endpoint", "a=http://x", "--output", "o", "--shape", "1x1"],
            "--shape with --endpoint: needs --tokenizer",
        ),
        (["sweep", "--num-steps", "1,0"], "--num-steps 1,0: give numbers above 0"),
        (
            ["sweep", "--shapes", "3x1,3x8x2"],
            "--shapes 3x1,3x8x2: --speculative-num-draft-tokens 2",
        ),
        (["sweep", "--shapes", "3"], "--shapes 3: '3' is no shape"),
        (["compare", "nowhere", "nowhere"], "nowhere: holds no finished measurement"),
    ],
)
def test_bad_options(run, started, arguments, message):
    run(*arguments, fails=message)
    assert started.commands == []


def test_the_command_line_imports_no_benchmark_before_it_runs():
    """Inside SGLang none at all, and the command line but its options."""
    code = (
        "import sys\n"
        "def ours(): return [m for m in sys.modules if m.startswith('fastmtp_benchmarks.')]\n"
        "import fastmtp_sglang.serving.plugin; inside = ours()\n"
        "import fastmtp_sglang.cli; print(inside, ours(), 'matplotlib' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[] ['fastmtp_benchmarks.options'] False"
