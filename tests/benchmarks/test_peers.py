"""The command line of `peers` over fake systems: what it prints, writes, refuses and exits with.

The real run is tests/served/test_peers.py. Alone: pytest tests/benchmarks/test_peers.py
"""

import json
import signal
import sys

import pytest
import tiny_models as models
import torch
import typer
from transformers import AutoTokenizer
from typer.testing import CliRunner

from fastmtp_benchmarks import peers, peers_report
from fastmtp_benchmarks.peers_systems import Answers, System
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.built_in import DraftHead
from fastmtp_sglang.models.catalog import SMOLLM2


class Fake(System):
    """Answers with zeros; "differs" makes FASTMTP answer otherwise, "stop" ends in batch 2."""

    behaviour = ""

    def _start(self, stack): ...

    def answer(self, prompts, tokens):
        if self.behaviour == "stop" and len(prompts) == 2 and self.name == "fastmtp":
            raise FastMTPError("the server ended with exit code 9")
        wrong = self.behaviour == "differs" and self.name == "fastmtp"
        return Answers([[int(wrong)] * tokens for _ in prompts], 2, 1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.target(tmp_path_factory.mktemp("peers") / "llama", "llama")


@pytest.fixture
def run(monkeypatch, model):
    app = typer.Typer()
    app.command()(peers.main)
    made = []

    def make(names, *arguments, **options):
        made.append((names, arguments, options))
        kinds = {"llama.cpp": ("float32", "Q8_0")}
        return [Fake(name, dtype) for name in names for dtype in kinds.get(name, ("float32",))]

    monkeypatch.setattr(peers, "_make_systems", make)
    monkeypatch.setattr(Fake, "behaviour", "")
    monkeypatch.setattr(peers_report, "_COPIED_BYTES", 4096)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments):
        given = ["--model", str(model), "--batch-sizes", "1,2", "--rounds", "2", "--tokens", "4"]
        result = CliRunner().invoke(app, [*given, *map(str, arguments)])
        result.made = made
        return result

    yield run
    signal.signal(signal.SIGTERM, before)


FOUR = ("transformers", "transformers-prompt-lookup", "sglang", "fastmtp")


@pytest.mark.heavy
def test_the_last_line_is_one_object(run):
    result = run("--json", "--systems", ",".join(FOUR))
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    (rows,) = json.loads(line).values()
    assert [(row["batch"], row["system"]) for row in rows] == [
        (batch, name) for batch in (1, 2) for name in FOUR
    ]
    assert {tuple(row) for row in rows} == {
        ("system", "dtype", "batch", "tokens_per_second", "ratio_to_transformers")
    }
    assert all(row["ratio_to_transformers"] > 0 for row in rows)
    # 8 prompts at batch 1 and 2, in two rounds.
    assert "32 of 32 answers of fastmtp are those of sglang" in result.stderr
    assert "16/16" in result.stderr


@pytest.mark.heavy
def test_files(run, tmp_path):
    output = tmp_path / "peers.json"
    assert run("--systems", "transformers,fastmtp,sglang", "--output", output).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peers.json", "peers.png"]
    result = json.loads(output.read_text())
    assert result["identical_sglang_fastmtp"] == [32, 32]
    assert result["environment"]["threads"] == result["threads"]
    assert len(result["rows"]) == 6
    assert result["rows"][1]["acceptance_length"] == 1.5
    assert result["rows"][1]["identical_to_transformers"] == [16, 16]
    assert len(result["turns"]) == 12
    assert result["memory_limit"]["weight_bytes"] > 2 * 49152 * 64


@pytest.mark.heavy
def test_a_changed_answer_fails(run, monkeypatch):
    monkeypatch.setattr(Fake, "behaviour", "differs")
    result = run("--json", "--systems", ",".join(FOUR))
    assert result.exit_code == 1
    assert "0 of 32 answers of fastmtp are those of sglang" in result.stderr
    assert json.loads(result.stdout)["rows"]


@pytest.mark.heavy
def test_a_stopped_run_goes_on(run, monkeypatch, tmp_path):
    output = tmp_path / "peers.json"
    arguments = ("--systems", "transformers,fastmtp", "--output", output)
    monkeypatch.setattr(Fake, "behaviour", "stop")
    assert "exit code 9" in str(run(*arguments).exception)
    (kept,) = tmp_path.iterdir()
    assert kept.name == "peers.partial.jsonl"
    monkeypatch.setattr(Fake, "behaviour", "")
    assert "begun with tokens 4" in str(run(*arguments, "--tokens", 5).exception)
    result = run(*arguments)
    assert result.exit_code == 0
    assert "round 1 of 2, batch 1" not in result.stdout
    assert "round 1 of 2, batch 2" in result.stdout
    assert not kept.exists()
    assert len(json.loads(output.read_text())["turns"]) == 8


@pytest.mark.heavy
def test_llama_cpp_is_measured_where_it_is_installed(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    result = run("--json")
    assert "cannot import llama_cpp (of llama-cpp-python), so it is not measured" in result.stderr
    assert result.made[-1][0] == list(FOUR)
    for asked in (("--systems", "llama.cpp"), ("--llama-python", "/bin/false")):
        assert "install it there, or leave llama.cpp out" in str(run(*asked).exception)
    (tmp_path / "llama_cpp.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    rows = json.loads(run("--json").stdout)["rows"]
    assert [row["dtype"] for row in rows if row["system"] == "llama.cpp"] == ["float32", "Q8_0"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-sizes", "1,x"), "--batch-sizes 1,x: give positive numbers"),
        (("--batch-sizes", "0"), "--batch-sizes 0: give positive numbers"),
        (("--batch-sizes", "64"), "--batch-sizes 64: there are 32 prompts"),
        (("--systems", "vllm"), "--systems vllm: unknown; give some of transformers"),
        (("--llama-python", "/none/python"), "--llama-python /none/python: No such file"),
        (("--output", "/none/x.json"), "--output /none/x.json: /none is no directory"),
        (("--fastmtp-flags", "'--x"), "--fastmtp-flags '--x: its quotes do not close"),
        (("--model", "/none"), "--model /none: no such directory"),
        (("--task", "/none.jsonl"), "--task /none.jsonl: no such file"),
    ],
)
def test_refusals_come_before_anything_is_started(run, arguments, message):
    systems = () if "--llama-python" in arguments else ("--systems", "transformers")
    result = run(*systems, *arguments)
    assert isinstance(result.exception, FastMTPError)
    assert str(result.exception).startswith(message)
    assert result.made == []


@pytest.mark.heavy
def test_an_accelerator_is_refused(run, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert "CUDA_VISIBLE_DEVICES" in str(run().exception)


def test_prompts_of_a_task(run, model, tmp_path):
    task = tmp_path / "own.jsonl"
    task.write_text("".join(f'{{"turns": ["question {n}", "more"]}}\n' for n in range(3)))
    assert run("--systems", "transformers", "--task", task).exit_code == 0
    assert "--batch-sizes 4: there are 3 prompts" in str(
        run("--systems", "transformers", "--task", task, "--batch-sizes", 4).exception
    )
    asked = peers._prompts(model, str(task), 8, 1)
    assert asked[0] != asked[1]
    own = peers._prompts(model, None, 32, 32)
    assert len({tuple(ids) for ids in own}) == 32


def test_the_chat_template_is_applied_once():
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM2.checkpoint())
    asked = tokenizer.decode(peers._prompts(SMOLLM2.checkpoint(), None, 8, 1)[0])
    assert asked == SMOLLM2.prompt("Explain to a child how rain comes about.")


@pytest.fixture
def embedded(monkeypatch, tmp_path):
    monkeypatch.setattr(SMOLLM2, "checkpoint", lambda *_: tmp_path)
    head = DraftHead(tmp_path / "head", trained=True, num_steps=1)
    monkeypatch.setattr(SMOLLM2, "draft_head", lambda *_, **__: head)


def test_systems_differ_in_speculation_alone(embedded, tmp_path):
    model = peers.Model("smollm2", flags=("--dtype", "bfloat16"))
    made = peers._make_systems(
        peers.SYSTEMS,
        model,
        tmp_path,
        "bfloat16",
        2,
        fastmtp_flags=["--speculative-adaptive"],
        llama_python="python",
    )
    assert [one.label for one in made] == [
        *("transformers bfloat16", "transformers-prompt-lookup bfloat16"),
        *("llama.cpp bfloat16", "llama.cpp Q8_0", "sglang bfloat16", "fastmtp bfloat16"),
    ]
    base, fast = (one._server.command for one in made[-2:])
    port = base.index("--port") + 1
    base[port] = fast[port] = "PORT"
    assert set(fast) - set(base) == {
        *("--speculative-algorithm", "FASTMTP", "--speculative-draft-model-path"),
        *(str(tmp_path / "head"), "--speculative-num-steps", "1", "--speculative-adaptive"),
    }
    assert fast[-1] == "--speculative-adaptive"
