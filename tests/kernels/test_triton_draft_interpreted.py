"""Starts the interpreter's tests in a process of their own, see ``interpreted*.py``.

TRITON_INTERPRET replaces the compiler for a whole process.
Alone: pytest tests/kernels/test_triton_draft_interpreted.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy


def test_kernels_under_the_interpreter():
    here = Path(__file__).parent
    files = sorted(here.glob("interpreted*.py"))
    assert len(files) == 2
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=3", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, *map(str, files)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
