"""Checkpoints that are whole or not there, and the clock that asks for them.

Alone: pytest tests/training/test_checkpoints.py
"""

from types import SimpleNamespace

import pytest

from fastmtp_sglang.training import checkpoints
from fastmtp_sglang.training.checkpoints import CheckpointClock, CheckpointFolder


@pytest.fixture
def folder(tmp_path):
    return CheckpointFolder(tmp_path / "run")


def write(folder, step, content="x"):
    """What Trainer leaves in the hidden folder."""
    place = folder.staging / f"checkpoint-{step}"
    place.mkdir(parents=True)
    (place / "trainer_state.json").write_text(content)
    return place


def names(folder):
    return sorted(path.name for path in folder.folder.iterdir())


def test_the_newest_are_kept_by_step(folder):
    for step in (9, 10, 100, 20):
        write(folder, step)
        folder.put_in_place(step, keep=2)
    assert names(folder) == [".saving", "checkpoint-100", "checkpoint-20"]
    assert folder.newest().name == "checkpoint-100"


def test_a_step_that_is_saved_twice(folder):
    for content in ("before validation", "after"):
        write(folder, 5, content)
        folder.put_in_place(5, keep=2)
    assert (folder.newest() / "trainer_state.json").read_text() == "after"


def test_half_a_checkpoint_of_a_killed_run_is_removed(folder):
    write(folder, 5)
    folder.put_in_place(5, keep=2)
    write(folder, 6)  # killed here: no manifest
    said = []
    assert folder.recover(said.append).name == "checkpoint-5"
    assert names(folder) == ["checkpoint-5"]
    assert not said


def test_a_whole_one_that_was_not_yet_in_place_is_put_there(folder):
    write(folder, 5, "old")
    folder.put_in_place(5, keep=2)
    written = write(folder, 5, "new")
    checkpoints.write_manifest(written, checkpoints._VERSION)
    assert (folder.recover(pytest.fail) / "trainer_state.json").read_text() == "new"
    assert names(folder) == ["checkpoint-5"]


def test_nothing_to_go_on_with(folder):
    assert folder.recover(pytest.fail) is None
    write(folder, 5)
    folder.put_in_place(5, keep=2)
    (folder.newest() / "trainer_state.json").write_text("longer")
    said = []
    assert folder.recover(said.append) is None
    assert names(folder) == ["damaged-checkpoint-5"]
    assert "left aside as damaged-checkpoint-5" in said[0]


def test_clock(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now)
    args = SimpleNamespace(world_size=1)
    state = SimpleNamespace(global_step=1, max_steps=10)
    clock = CheckpointClock(60)

    def asked(event):
        control = SimpleNamespace(should_save=False)
        getattr(clock, event)(args, state, control)
        return control.should_save

    now += 500
    clock.on_train_begin(args, state, None)
    now += 59
    assert not asked("on_step_end")
    assert clock.is_due(args, share=0.5)
    now += 1
    assert asked("on_step_end")
    clock.on_save(args, state, None)
    assert not asked("on_step_end")
    assert not asked("on_epoch_end")
    state.global_step = 10
    assert asked("on_epoch_end")
