"""Checkpoints of a run: saved by the clock, whole or not at all, checked before they are used.

Trainer writes a checkpoint's files one after the other. Here it writes them into a hidden folder,
which gets a manifest of sizes and sums and is then renamed to `checkpoint-STEP`. What a kill leaves
in the hidden folder is put in place if it was whole, else removed. A checkpoint that no longer is
what its manifest says (a cut file, a bad disk) is renamed to `damaged-checkpoint-STEP`.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints, sort_checkpoints

from fastmtp_sglang.files.cache import damage, write_manifest

_VERSION = "fastmtp-checkpoint"


class CheckpointFolder:
    """The checkpoints of `folder`; `staging` is where Trainer writes the next one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.staging = folder / ".saving"

    def put_in_place(self, step: int, keep: int | None) -> None:
        """Finish the checkpoint that was written; then remove all but the newest `keep`."""
        written = self.staging / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        write_manifest(written, _VERSION)
        _flush(written)
        self._adopt(written)
        rotate_checkpoints(str(self.folder), save_total_limit=keep)

    def newest(self) -> Path | None:
        """The newest checkpoint, None without any."""
        found = sort_checkpoints(str(self.folder))
        return Path(found[-1]) if found else None

    def recover(self, say: Callable[[str], None]) -> Path | None:
        """Clean up behind a kill and return the newest checkpoint that is whole.

        `say` gets a line for each one that is damaged and therefore left aside.
        """
        for written in sort_checkpoints(str(self.staging)):
            if damage(Path(written), _VERSION, every_sum=True) is None:
                self._adopt(Path(written))
        shutil.rmtree(self.staging, ignore_errors=True)
        while (newest := self.newest()) is not None:
            reason = damage(newest, _VERSION, every_sum=True)
            if reason is None:
                return newest
            aside = newest.with_name(f"damaged-{newest.name}")
            shutil.rmtree(aside, ignore_errors=True)
            newest.rename(aside)
            say(f"{newest} is damaged ({reason}): left aside as {aside.name}")
        return None

    def _adopt(self, written: Path) -> None:
        place = self.folder / written.name
        # Of the same step: a kill between these two lines leaves the written one to `recover`.
        shutil.rmtree(place, ignore_errors=True)
        written.rename(place)
        _flush_folder(self.folder)


class CheckpointClock(TrainerCallback):
    """Asks for a checkpoint when `seconds` have passed since the last one, and at the end.

    All ranks follow the clock of the first.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        self._saved_at = time.monotonic()

    def is_due(self, args: TrainingArguments, share: float = 1.0) -> bool:
        """Whether this share of the time between two checkpoints has passed, by rank 0's clock."""
        passed = time.monotonic() - self._saved_at
        if args.world_size == 1:
            return passed >= share * self._seconds
        due = torch.tensor(passed >= share * self._seconds, device=args.device)
        torch.distributed.broadcast(due, src=0)
        return bool(due)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Loading data took its time."""
        self.restart()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save after this step, if it is time."""
        control.should_save |= self.is_due(args)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save the last step, after its validation."""
        control.should_save |= state.global_step >= state.max_steps

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Count from the checkpoint that was just written."""
        self.restart()


def _flush(folder: Path) -> None:
    """Make what is in a folder survive a power cut."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
