"""A whole run from records to a head directory, through the command line, on a tiny target.

Alone: pytest tests/training/test_run.py
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as models
import torch
from client import Answer, acceptance_length, generate_batch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fastmtp_sglang.cli import app
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.lock import sole_writer
from fastmtp_sglang.head.compatibility import check_compatible
from fastmtp_sglang.servers.server_process import ServerProcess
from fastmtp_sglang.training.config import TrainConfig
from fastmtp_sglang.training.run import train
from fastmtp_sglang.training.start import native_head

pytestmark = pytest.mark.heavy

# Ids that the records use: few, so that a handful of steps learns something.
IDS = 40

RUN_CLI = "from fastmtp_sglang.cli import main; main()"


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A target whose next token depends almost only on the last one: learnable in seconds."""
    return models.target(tmp_path_factory.mktemp("target") / "target", "qwen2", output_scale=0.02)


@pytest.fixture(scope="module")
def records(target, tmp_path_factory):
    """Greedy answers of the target."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(10, 10 + IDS, (40, 4), generator=generator)
    answers = model.generate(prompts, do_sample=False, max_new_tokens=16, eos_token_id=2)[:, 4:]
    path = tmp_path_factory.mktemp("data") / "records.jsonl"
    with path.open("w") as file:
        for index, (prompt, answer) in enumerate(
            zip(prompts.tolist(), answers.tolist(), strict=True)
        ):
            record = {"id": f"c{index}/0", "prompt_ids": prompt, "answer_ids": answer}
            file.write(json.dumps(record) + "\n")
    return path


def settings(target, records, output, **more):
    return TrainConfig.model_validate(
        {
            "target": str(target),
            "output": str(output),
            "head": {"num_steps": 2},
            "data": {"train": [str(records)], "max_length": 64},
            "vocabulary": {"output": "data"},
            "optimizer": {
                "learning_rate": 1e-2,
                "batch_size": 8,
                "documents_per_forward": 4,
                "epochs": 4,
            },
            "validation": {"fraction": 0.2, "max_new_tokens": 12, "prompts": 4},
            **more,
        }
    )


def evaluations(output) -> list[dict]:
    state = max(output.glob("checkpoint-*"), key=os.path.getmtime) / "trainer_state.json"
    return [line for line in json.loads(state.read_text())["log_history"] if "eval_loss_1" in line]


def test_command_trains_a_head_that_serves(target, records, tmp_path):
    config = tmp_path / "run.yaml"
    fields = settings(target, records, tmp_path / "elsewhere").model_dump(mode="json")
    config.write_text(json.dumps(fields))
    output, states = tmp_path / "run", tmp_path / "states"
    result = CliRunner().invoke(
        app,
        [
            "train",
            str(config),
            *("--output", str(output)),
            *("--offline", str(states)),
            *("--set", "optimizer.seed=3"),
        ],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert f"wrote {output / 'head'}" in result.output
    check_compatible(target, output / "head")
    assert list((output / "tensorboard").iterdir())
    assert not (output / "runs").exists()
    assert not (tmp_path / "elsewhere").exists()

    losses = [line["eval_loss_1"] for line in evaluations(output)]
    assert losses[-1] < losses[0]
    run = json.loads((output / "head" / "training.json").read_text())
    assert run["recipe"]["optimizer"]["seed"] == 3
    assert run["metrics"]["eval_drafts"] > 0
    card = (output / "head" / "README.md").read_text()
    assert "accepted, full vocabulary" in card
    assert "accepted, draft vocabulary" in card
    assert f"learning_rate: {0.01}" in card

    exported = CliRunner().invoke(
        app,
        [
            "export",
            str(output / "head"),
            "--bf16",
            "--out",
            str(tmp_path / "small"),
            *("--target", str(target)),
        ],
        catch_exceptions=False,
    )
    assert exported.exit_code == 0
    assert "accepted, full vocabulary" in (tmp_path / "small" / "README.md").read_text()


@pytest.mark.parametrize("loss", [{}, {"cross_entropy": 0.5, "kl": 0.5}], ids=["ce", "ce and kl"])
def test_online_run_equals_offline_run(target, records, tmp_path, loss):
    trained = {}
    for name in ("online", "offline"):
        config = settings(target, records, tmp_path / name, loss=loss)
        config.optimizer.epochs = 1
        if name == "offline":
            config.data.offline = tmp_path / "states"
        trained[name] = load_file(train(config) / "model.safetensors")
    for name, tensor in trained["online"].items():
        torch.testing.assert_close(tensor, trained["offline"][name], rtol=1e-3, atol=1e-4)


def steps_of(folder):
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def same(found, expected):
    return all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


@pytest.fixture(scope="module")
def whole(target, records, tmp_path_factory):
    """A run that nothing interrupts: its configuration and its head."""
    config = settings(target, records, tmp_path_factory.mktemp("whole") / "run")
    config.data.offline = config.output.with_name("states")
    config.optimizer.epochs = 2
    return config, load_file(train(config) / "model.safetensors")


def test_damaged_checkpoints_are_left_aside_and_the_one_before_goes_on(whole, tmp_path, capsys):
    config, expected = whole
    cut = config.model_copy(deep=True)
    cut.output, cut.save_minutes, cut.keep_checkpoints = tmp_path / "cut", 0, 4
    train(cut)
    shutil.rmtree(tmp_path / "cut" / "head")
    good, flipped, torn, nameless = steps_of(tmp_path / "cut")
    content = bytearray((flipped / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (flipped / "model.safetensors").write_bytes(content)
    os.truncate(torn / "optimizer.pt", 1000)
    (nameless / "trainer_state.json").unlink()
    assert same(load_file(train(cut) / "model.safetensors"), expected)
    said = capsys.readouterr().out
    assert f"{nameless} is damaged (trainer_state.json is missing)" in said
    assert f"{torn} is damaged (optimizer.pt has 1000 bytes instead of" in said
    assert f"{flipped} is damaged (model.safetensors has another SHA-256 sum" in said
    assert f"going on after {good}" in said
    assert (tmp_path / "cut" / f"damaged-{torn.name}").is_dir()


def test_a_run_goes_on_with_its_settings_only(target, records, tmp_path):
    config = settings(target, records, tmp_path / "run", save_minutes=0)
    config.optimizer.epochs = 1
    assert train(config) == train(config)  # which is complete
    shutil.rmtree(tmp_path / "run" / "head")
    changed = config.model_copy(deep=True)
    changed.optimizer.learning_rate = 0.5
    with pytest.raises(FastMTPError, match="run of other settings"):
        train(changed)
    free = config.model_copy(deep=True)
    free.optimizer.documents_per_forward = 2
    free.save_minutes = 5
    train(free)


def test_two_runs_at_once_are_refused(target, records, tmp_path):
    with (
        sole_writer(tmp_path / "run", "fastmtp train"),
        pytest.raises(FastMTPError, match="another `fastmtp train` writes there"),
    ):
        train(settings(target, records, tmp_path / "run"))


def test_killed_at_any_moment_the_same_command_gives_the_same_head(whole, tmp_path):
    """Real kills (SIGKILL) at seeded moments: when the run is about to open or rename a file."""
    uninterrupted, expected = whole
    config = uninterrupted.model_copy(deep=True)
    config.output = tmp_path / "run"
    config.data.offline = tmp_path / "run" / "states"
    config.save_minutes = 0
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    ran = subprocess.run(
        [sys.executable, Path(__file__).with_name("killed_runs.py"), path, "7"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout.splitlines()[-1])) > 5
    assert same(load_file(tmp_path / "run" / "head" / "model.safetensors"), expected)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert not [name for name in left if name.startswith(("damaged-", ".saving", ".head"))]


@pytest.mark.slow  # `test_trainer` compares two ranks with one.
def test_two_processes_train_the_same_head(target, records, tmp_path):
    """`accelerate launch` or `torchrun`: one process prepares, both train, one writes."""
    config = settings(target, records, tmp_path / "one")
    config.data.offline = tmp_path / "states"
    config.optimizer.epochs = 1
    expected = load_file(train(config) / "model.safetensors")
    path = tmp_path / "two.yaml"
    fields = config.model_dump(mode="json") | {"output": str(tmp_path / "two")}
    path.write_text(json.dumps(fields))
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    ran = subprocess.run(
        [sys.executable, *launch, "--no-python", sys.executable, "-c", RUN_CLI, "train", str(path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("wrote ") == 1
    found = load_file(tmp_path / "two" / "head" / "model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_batch_that_does_not_divide_is_refused(target, records, tmp_path):
    config = settings(target, records, tmp_path / "run")
    config.optimizer.documents_per_forward = 3
    with pytest.raises(FastMTPError, match=r"batch_size 8 is no multiple of .* 3 x 1 processes"):
        train(config)


@pytest.fixture(scope="module")
def tuned(target, records, tmp_path_factory):
    """A MiMo-layout target whose native layer drafts badly, and the run that tuned it."""
    folder = tmp_path_factory.mktemp("tuned")
    head = models.agreeing_head(target, folder / "noisy", noise=0.8)
    mimo = models.as_mimo(target, head, folder / "mimo")
    config = settings(mimo, records, folder / "run")
    config.head.start = "native"
    config.vocabulary.output = "full"
    config.optimizer.learning_rate = 3e-3
    config.validation.every = 2
    trained = train(config)
    result = CliRunner().invoke(
        app,
        ["export", str(trained), "--merge", "--target", str(mimo), "--out", str(folder / "new")],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    return folder


def test_native_layer_is_tuned_and_merged_back(tuned):
    """MiMo's layout: acceptance rises, and the merged checkpoint holds the tuned layer."""
    lengths = [line["eval_acceptance_length"] for line in evaluations(tuned / "run")]
    assert lengths[-1] > lengths[0] + 0.2
    merged = native_head(tuned / "new").state_dict()
    expected = load_file(tuned / "run" / "head" / "model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in merged.items())
    check_compatible(tuned / "new", None)


@pytest.mark.slow
def test_a_tuned_native_layer_is_accepted_more_often_when_served(tuned, records):
    """The merged checkpoint says the same as before, in fewer verifications."""
    before, after = served(tuned / "mimo", records, tuned), served(tuned / "new", records, tuned)
    assert [answer.ids for answer in after] == [answer.ids for answer in before]
    assert acceptance_length(after) > acceptance_length(before) + 0.2


def served(model, records, folder) -> list[Answer]:
    """What FASTMTP answers to the prompts of the records, 12 tokens each."""
    prompts = [json.loads(line)["prompt_ids"] for line in records.read_text().splitlines()]
    flags = ["--dtype", "float32", "--max-total-tokens", "4096"]
    flags += ["--speculative-algorithm", "fastmtp", "--speculative-num-steps", "2"]
    with ServerProcess(model, flags, log_path=folder / "server.log") as server:
        return generate_batch(server.url, prompts, max_new_tokens=12, ignore_eos=True)
