"""SGLANG_PLUGINS without us, for real: SGLang refuses the algorithm, and the doctor says why.

Alone: pytest tests/served/test_whitelist.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models as models

from fastmtp_sglang.servers.server_process import launch_prefix

# Our CPU platform only, so that the start comes as far as the algorithm.
WHITELIST = "fastmtp_cpu"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SGLANG_PLUGINS": WHITELIST, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_sglang_refuses_the_algorithm(tmp_path):
    model = models.target(tmp_path / "model")
    result = run(*launch_prefix(), "--model-path", str(model), "--speculative-algorithm", "fastmtp")
    assert result.returncode != 0
    assert "Unknown speculative algorithm name: FASTMTP" in result.stderr


def test_the_doctor_names_the_whitelist_and_its_fix():
    result = run(str(Path(sys.executable).with_name("fastmtp")), "doctor")
    assert result.returncode == 1, result.stderr
    assert (
        "problem SGLANG_PLUGINS: fastmtp_cpu leaves out fastmtp\n"
        "        fix: export SGLANG_PLUGINS=fastmtp,fastmtp_cpu, or unset it\n"
    ) in result.stdout
