"""Each way into SGLang serves FASTMTP, with the answers of the target alone.

`sglang serve` is what every other test of this folder starts; here are `sglang.Engine` in a
script and `python -m sglang.launch_server`.

Alone: pytest tests/served/test_entry_points.py (starts four engines and a server)
"""

import os
import sys

import pytest
from client import generate
from engine_runs import MAX_NEW_TOKENS, EngineRun, run_all

from fastmtp_sglang.servers import server_process
from fastmtp_sglang.servers.server_process import ServerProcess


@pytest.fixture(scope="module")
def engine_runs(tmp_path_factory) -> dict[str, EngineRun]:
    return run_all(tmp_path_factory.getbasetemp() / "engines")


def test_engine(engine_runs):
    base, fast = engine_runs["plain"], engine_runs["llama"]
    assert base.target == fast.target
    assert fast.answers == base.answers
    verifications = dict.fromkeys(fast.prompts, 0)
    for record in fast.records:
        if record["phase"] == "DRAFT_EXTEND_V2":
            for rid in record["rids"]:
                verifications[rid] += 1
    # Each token after the prefill's would need a step of its own.
    assert sum(verifications.values()) < 0.8 * len(verifications) * (MAX_NEW_TOKENS - 1)


def test_launch_server(engine_runs, tmp_path, monkeypatch):
    base, run = engine_runs["plain"], engine_runs["llama"]
    flags = ["--dtype", "float32", "--max-total-tokens", "4096", "--context-length", "512"]
    flags += ["--speculative-algorithm", "fastmtp"]
    flags += ["--speculative-draft-model-path", str(run.head)]
    prefix = [sys.executable, "-m", "sglang.launch_server"]
    monkeypatch.setattr(server_process, "launch_prefix", lambda: prefix)
    server = ServerProcess(
        run.target,
        flags,
        env={"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")},
        log_path=tmp_path / "server.log",
    )
    assert server.command[: len(prefix)] == prefix
    with server:
        for rid, prompt in base.prompts.items():
            answer = generate(server.url, prompt, max_new_tokens=MAX_NEW_TOKENS, ignore_eos=True)
            assert list(answer.ids) == base.answers[rid]
            assert 0 < answer.meta["spec_verify_ct"] < MAX_NEW_TOKENS
