"""What a figure was measured on and with: part of every file in `benchmarks/results/`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastmtp_sglang.files.atomic import write_json

_PACKAGES = ("fastmtp-sglang", "sglang", "torch", "triton", "transformers")


def environment() -> dict[str, Any]:
    """Return date, commit, versions and hardware; a commit with local changes ends in "+"."""
    import torch

    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None  # kernels are measured on machines without SGLang
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": versions,
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "gpus": gpus,
    }


def save(result: dict[str, Any], path: Path, command: str) -> None:
    """Write `result` with the environment and the command that gave it, atomically, as JSON.

    The folder is made if need be: a measurement of many minutes must not be lost at its end.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"command": command, "environment": environment(), **result})


def _commit() -> str | None:
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", ".", "..")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None  # an installed wheel


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
