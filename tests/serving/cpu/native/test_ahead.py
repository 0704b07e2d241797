"""What the cache lacks is compiled once, by others, for whom everybody waits.

Alone: pytest tests/serving/cpu/native/test_ahead.py
"""

import fcntl
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fastmtp_sglang.serving.cpu.native import ahead, compiled


@pytest.fixture
def started(monkeypatch) -> list[list[str]]:
    """Commands that would have run, each while it holds what it was given."""
    commands = []
    monkeypatch.setattr(
        ahead.subprocess, "Popen", lambda command, **_: commands.append(command[1:])
    )
    return commands


def test_nothing_is_compiled_twice(tmp_path, started):
    ahead.compile_ahead(tmp_path)
    assert len(started) == 1
    with (tmp_path / "lock").open() as another_server:
        fcntl.flock(another_server, fcntl.LOCK_SH)
        ahead.compile_ahead(tmp_path)
    assert len(started) == 1
    (tmp_path / "complete").touch()
    ahead.compile_ahead(tmp_path)
    assert len(started) == 1


def test_who_needs_an_operator_waits_for_those_who_compile_it(tmp_path):
    with (tmp_path / "lock").open("w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        waiting = threading.Thread(target=ahead.wait, args=(tmp_path,), daemon=True)
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    # They have ended, whether all is there or not.
    waiting.join(60)
    assert not waiting.is_alive()


@pytest.mark.parametrize("there", ["nothing", "everything"])
def test_nobody_waits_for_nothing(tmp_path, there):
    if there == "everything":
        (tmp_path / "complete").touch()
    with (tmp_path / ("lock" if there == "everything" else "other")).open("w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        ahead.wait(tmp_path)


def test_the_lock_lasts_as_long_as_those_who_compile(tmp_path, monkeypatch):
    """They inherit it; a killed one lets go of it too."""
    real, processes = subprocess.Popen, []

    def popen(command, **options):
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        processes.append(real(sleep, **options))

    monkeypatch.setattr(ahead.subprocess, "Popen", popen)
    ahead.compile_ahead(tmp_path)
    with (tmp_path / "lock").open() as mine:
        with pytest.raises(BlockingIOError):
            fcntl.flock(mine, fcntl.LOCK_SH | fcntl.LOCK_NB)
        processes[0].kill()
        processes[0].wait()
        fcntl.flock(mine, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_the_halves_are_all_that_is_compiled():
    """Which of a room's modules hold operators is read from their sources."""
    room = Path(compiled.__file__).parent
    sources = {path.stem: path.read_text() for path in room.glob("*.py")}
    found = {
        name for name, text in sources.items() if "\n@operator" in text or "\n@compiled" in text
    }
    reached, new = set(), {module for half in ahead._HALVES for module in half}
    while new:
        reached |= new
        new = {
            name
            for name in sources
            if any(f"native.{name} import" in sources[module] for module in new)
        } - reached
    # `engine` imports rows under another name.
    assert "import rows as by_row" in sources["engine"]
    assert found <= reached | {"rows"}
