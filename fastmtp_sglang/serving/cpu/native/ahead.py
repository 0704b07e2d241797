"""Compiling ahead of need: what the cache lacks, in processes of their own, while SGLang starts.

Two processes compile a half each and hold a lock until both have ended, however they end. Whoever
needs an operator meanwhile waits for them instead of compiling it a second time, and compiles it
itself where they failed.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import subprocess
import sys
from pathlib import Path

# The file that says that the cache holds everything, and the one that is locked until then.
_COMPLETE, _LOCK = "complete", "lock"
# Modules with operators, in halves that take about as long.
_HALVES = ("engine", "trees"), ("draws", "moves", "own_tokens", "routes")
# Whether this is one of the processes that others wait for.
_is_ahead = False


def compile_ahead(folder: Path) -> None:
    """Let other processes compile into a folder what it lacks; returns at once."""
    if (folder / _COMPLETE).exists():
        return
    with (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Another server, which starts too, has come first.
            return
        subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main({str(folder)!r})"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # The lock is theirs now.
            pass_fds=(lock.fileno(),),
        )


def wait(folder: Path) -> None:
    """Wait for those who compile into a folder, if there are any."""
    lock = folder / _LOCK
    if _is_ahead or (folder / _COMPLETE).exists() or not lock.exists():
        return
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)


def main(folder: str) -> None:
    """Compile everything, together with a process that begins here, and note that it is done."""
    global _is_ahead
    _is_ahead = True
    # Beside SGLang's imports, which everybody waits for.
    os.nice(10)
    child = os.fork()
    for module in _HALVES[child == 0]:
        importlib.import_module(f"{__package__}.{module}")
    if child == 0:
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        (Path(folder) / _COMPLETE).touch()
