"""The output folder of `fastmtp train`: with which settings it is written.

`run.json` holds what decides which head comes out: the configuration, and digests of all files that
it names. The same command goes on; another one is refused with the names of what differs, once a
step has been taken.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import write_json
from fastmtp_sglang.files.changes import differences
from fastmtp_sglang.models import catalog
from fastmtp_sglang.training.checkpoints import CheckpointFolder
from fastmtp_sglang.training.config import TrainConfig
from fastmtp_sglang.training.records import record_files
from fastmtp_sglang.training.target import target_digest

SETTINGS = "run.json"

# They change what a run costs, not the head: a run may go on with others.
_FREE = {
    "output",
    "data.offline",
    "save_minutes",
    "keep_checkpoints",
    "log_every",
    "optimizer.documents_per_forward",
}
# Of `vocabulary.output` and `head.start`: what is no path.
_WORDS = ("full", "data", "scratch", "fitted", "native")


def check_settings(config: TrainConfig) -> None:
    """Compare with the run that is in the output folder, and write down the settings of a new one.

    Raises:
        FastMTPError: the folder holds a run of other settings or data.
    """
    folder = config.output
    path = folder / SETTINGS
    now = run_settings(config)
    checkpoints = CheckpointFolder(folder)
    if (folder / "head").exists() or checkpoints.newest() or checkpoints.staging.exists():
        changed = differences(_read(path), now)
        if changed:
            raise FastMTPError(
                f"output {folder} holds a run of other settings: {'; '.join(changed)}. Give the "
                "same ones to go on, or another output."
            )
    elif not path.is_file() or _read(path) != now:
        # Made for the settings before these, in which no step was taken.
        shutil.rmtree(folder / "start", ignore_errors=True)
        write_json(path, now)


def run_settings(config: TrainConfig) -> dict[str, Any]:
    """What decides which head comes out: dotted key -> value, or digests of the files it names.

    Raises:
        FastMTPError: a file is missing.
    """
    settings = {
        key: value
        for key, value in _flat(config.model_dump(mode="json")).items()
        if key not in _FREE
    }
    settings["target"] = target_digest(catalog.directory("target", config.target))
    settings["data.train"] = _digests(record_files(config.data.train))
    settings["validation.data"] = _digests(record_files(config.validation.data))
    lists = {
        "vocabulary.output": config.vocabulary.output,
        "validation.draft_vocabulary": config.validation.draft_vocabulary,
        "head.start": config.head.start,
    }
    for key, value in lists.items():
        # A word is a word, also beside a folder of that name.
        path = Path(value) if value and value not in _WORDS else None
        if path and path.is_dir():
            settings[key] = _digests(sorted(path.glob("*.safetensors")))
        elif path and path.is_file():
            settings[key] = _digests([path])
    return settings


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _digests(files: list[Path]) -> list[str]:
    """Of each file its name and the beginning of its SHA-256 sum: it may move, not change."""
    found = []
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found.append(f"{path.name} {digest[:16]}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no object")
    except (OSError, ValueError) as error:
        raise FastMTPError(
            f"{path} cannot be read ({error}), so it is not known which settings the run beside it "
            "has: give another output, or remove the folder."
        ) from error
    return content
