"""Starts the interpreter's tests in a process of their own, see ``interpreted*.py``."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["interpreted.py", "interpreted_route.py"])
def test_kernels_under_the_interpreter(name):
    tests = Path(__file__).with_name(name)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--maxfail=3", "-p", "no:cacheprovider", str(tests)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=tests.parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
