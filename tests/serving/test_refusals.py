"""A refused start is one line in the commands that start a server, and a traceback elsewhere.

Alone: pytest tests/serving/test_refusals.py
"""

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
sys.argv[0] = {name!r}
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving import refusals
refusals.install()
refusals.install()
def deep(n):
    raise {error} if n == 0 else deep(n - 1)
deep(12)
"""


def stderr_of(name: str, error: str) -> str:
    program = _PROGRAM.format(name=name, error=error)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("name", ["/venv/bin/sglang", "/site-packages/sglang/launch_server.py"])
def test_a_refusal_is_one_line_and_other_errors_are_whole(name):
    assert stderr_of(name, "FastMTPError('--flag 3: no')") == "error: --flag 3: no\n"
    assert "Traceback" in stderr_of(name, "ValueError('x')")


def test_a_program_of_its_own_keeps_the_traceback():
    assert "Traceback" in stderr_of("engine.py", "FastMTPError('no')")
