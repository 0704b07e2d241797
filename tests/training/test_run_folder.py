"""What decides which head comes out, and a run that goes on with that or with nothing.

Alone: pytest tests/training/test_run_folder.py
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.training.config import TrainConfig
from fastmtp_sglang.training.run_folder import SETTINGS, check_settings, run_settings


@pytest.fixture
def make(tmp_path):
    """A configuration whose files exist; `changes` are sections or fields of it."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "config.json").write_text("{}")
    save_file({"w": torch.zeros(4)}, target / "model.safetensors")
    (tmp_path / "records.jsonl").write_text("{}\n")

    def make(**changes) -> TrainConfig:
        fields = {
            "target": str(target),
            "output": tmp_path / "run",
            "data": {"train": [tmp_path / "records.jsonl"]},
        }
        return TrainConfig.model_validate(fields | changes)

    return make


@pytest.fixture
def started(make, tmp_path):
    """Check the settings of a first run, which then takes a step."""

    def started(**changes) -> TrainConfig:
        config = make(**changes)
        check_settings(config)
        (config.output / "checkpoint-1").mkdir(parents=True)
        return config

    (tmp_path / "run").mkdir()
    return started


def test_the_same_settings_go_on(started, make):
    started()
    check_settings(make())


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optimizer": {"learning_rate": 0.5}}, r"optimizer.learning_rate was 5e-05 and is 0.5"),
        (
            {"loss": {"kl": 1.0}, "head": {"num_steps": 2}},
            r"head.num_steps was 3 and is 2; loss.kl was 0.0 and is 1.0\. Give the same ones",
        ),
        ({"vocabulary": {"output": "data"}}, "vocabulary.output was 'full' and is 'data'"),
        ({"head": {"start": "native"}}, "head.start was 'scratch' and is 'native'"),
    ],
)
def test_other_settings_are_refused_by_name(started, make, changes, told):
    started()
    with pytest.raises(FastMTPError, match=rf"holds a run of other settings: {told}"):
        check_settings(make(**changes))


@pytest.mark.parametrize("step", ["head", "checkpoint-7", ".saving"])
def test_whatever_shows_that_a_step_was_taken(make, tmp_path, step):
    """The finished head, a checkpoint, and one that was being saved."""
    (tmp_path / "run").mkdir()
    check_settings(make())
    (tmp_path / "run" / step).mkdir()
    with pytest.raises(FastMTPError, match=r"head\.num_steps was 3 and is 2"):
        check_settings(make(head={"num_steps": 2}))


def test_what_changes_only_the_cost_may_change(started, make, tmp_path):
    started()
    data = {"train": [tmp_path / "records.jsonl"], "offline": tmp_path / "states"}
    check_settings(
        make(
            data=data,
            optimizer={"documents_per_forward": 2},
            save_minutes=5,
            keep_checkpoints=9,
            log_every=1,
        )
    )


def test_settings_may_change_before_the_first_step(make, tmp_path):
    """What was made for the first ones goes, and only that."""
    (tmp_path / "run" / "start").mkdir(parents=True)
    (tmp_path / "run" / "greedy.json").write_text("{}")
    check_settings(make())
    assert not (tmp_path / "run" / "start").exists()  # whoever made it wrote no settings
    (tmp_path / "run" / "start").mkdir()
    check_settings(make())
    assert (tmp_path / "run" / "start").is_dir()
    other = make(optimizer={"learning_rate": 1e-3})
    check_settings(other)
    assert not (tmp_path / "run" / "start").exists()
    assert (tmp_path / "run" / "greedy.json").is_file()
    assert json.loads((tmp_path / "run" / SETTINGS).read_text()) == run_settings(other)


def test_data_may_move_but_not_change(started, make, tmp_path):
    started()
    (tmp_path / "moved").mkdir()
    records = (tmp_path / "records.jsonl").rename(tmp_path / "moved" / "records.jsonl")
    moved = make(data={"train": [records]})
    check_settings(moved)
    records.write_text("{}\n{}\n")
    with pytest.raises(FastMTPError, match=r"data.train was \['records.jsonl \w+'\] and is"):
        check_settings(moved)


def test_a_target_may_move_but_not_change(started, make, tmp_path):
    config = started()
    target = (tmp_path / "target").rename(tmp_path / "other name")
    check_settings(make(target=str(target)))
    save_file({"w": torch.ones(4)}, target / "model.safetensors")
    with pytest.raises(FastMTPError, match="run of other settings: target was 'sha256:"):
        check_settings(make(target=str(target)))
    assert str(target) not in (config.output / SETTINGS).read_text()


def test_the_files_that_settings_name_count_by_their_content(make, tmp_path):
    vocabulary, head = tmp_path / "v.safetensors", tmp_path / "head"
    vocabulary.write_bytes(b"list")
    head.mkdir()
    (head / "model.safetensors").write_bytes(b"weights")
    (head / "README.md").write_text("card")
    config = make(
        vocabulary={"output": str(vocabulary)},
        head={"start": str(head)},
        validation={"data": [tmp_path / "records.jsonl"], "draft_vocabulary": vocabulary},
    )
    before = run_settings(config)
    assert before["validation.data"] == before["data.train"]
    assert before["vocabulary.output"] == before["validation.draft_vocabulary"]
    (head / "README.md").write_text("another card")
    assert run_settings(config) == before
    (head / "model.safetensors").write_bytes(b"others")
    vocabulary.write_bytes(b"another")
    after = run_settings(config)
    assert {key for key in before if before[key] != after[key]} == {
        "head.start",
        "vocabulary.output",
        "validation.draft_vocabulary",
    }


@pytest.mark.parametrize("word", ["full", "data"])
def test_a_word_is_a_word_also_beside_a_folder_of_that_name(make, tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    (tmp_path / word).mkdir()
    (tmp_path / "scratch").mkdir()
    settings = run_settings(make(vocabulary={"output": word}))
    assert (settings["vocabulary.output"], settings["head.start"]) == (word, "scratch")


@pytest.mark.parametrize("content", [None, "", "[]", b"\xff", '{"target"'])
def test_settings_that_cannot_be_read(started, make, content):
    """Not known is not the same: the run beside them could be any."""
    path = started().output / SETTINGS
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FastMTPError, match=r"run\.json cannot be read .*: give another output"):
        check_settings(make())


def test_missing_data_is_refused_before_anything_is_written(make, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(FastMTPError, match="none does not exist"):
        check_settings(make(data={"train": [tmp_path / "none"]}))
    assert list((tmp_path / "run").iterdir()) == []
