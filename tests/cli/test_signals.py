"""What ends a command: not what it was started to ignore.

Alone: pytest tests/cli/test_signals.py
"""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fastmtp_sglang.cli

_PROGRAM = """
import signal
from fastmtp_sglang.cli.signals import ending_signals
print([number.name for number in ending_signals()])
"""


@pytest.mark.parametrize(
    ("ignored", "expected"),
    [
        ([], ["SIGTERM", "SIGHUP"]),
        ([signal.SIGHUP], ["SIGTERM"]),
        ([signal.SIGTERM, signal.SIGHUP], []),
    ],
)
def test_ignored_signals_end_nothing(ignored, expected):
    def ignore() -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, preexec_fn=ignore, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(expected)


def test_no_command_decides_that_for_itself():
    folder = Path(fastmtp_sglang.cli.__file__).parent
    named = [path.name for path in folder.glob("*.py") if "SIGHUP" in path.read_text()]
    assert named == ["signals.py"]
