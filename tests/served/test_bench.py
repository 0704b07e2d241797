"""`fastmtp bench` against real servers: native and OpenAI's API must agree on what was accepted.

Alone: pytest tests/served/test_bench.py
"""

import json
import subprocess
import sys

import pytest

from fastmtp_benchmarks.configurations import Configuration
from fastmtp_benchmarks.endpoint import Sampling
from fastmtp_benchmarks.load import Level
from fastmtp_benchmarks.runs import Plan, run
from fastmtp_benchmarks.tasks import Conversation, Task

QUESTIONS = ("Why is the sky blue?", "Name three rivers.", "What is 3 times 4?")
TURNS = 2 * len(QUESTIONS)


@pytest.fixture(scope="module")
def rows(servers, tmp_path_factory):
    """API -> configuration -> its row of one task at concurrency 2."""
    configurations = [
        Configuration("baseline", url=servers("smollm2")),
        Configuration("fastmtp", url=servers("smollm2-fastmtp")),
    ]
    conversations = [Conversation(f"{i}", (text, "And why?")) for i, text in enumerate(QUESTIONS)]
    measured = {}
    for api in ("sglang", "openai"):
        plan = Plan(
            output=tmp_path_factory.mktemp(api),
            configurations=configurations,
            tasks=[Task("t", tuple(conversations))],
            levels=[Level(concurrency=2)],
            sampling=Sampling(max_new_tokens=16),
            command="test",
            api=api,
        )
        measured[api] = {row.configuration: row for row in run(plan, print)}
    return measured


@pytest.mark.parametrize("api", ["sglang", "openai"])
def test_a_real_report(rows, api):
    baseline, fastmtp = rows[api]["baseline"], rows[api]["fastmtp"]
    assert (fastmtp.failed, baseline.failed, fastmtp.requests) == (0, 0, TURNS)
    assert (fastmtp.identical, fastmtp.pairs, fastmtp.diverged) == (TURNS, TURNS, 0)
    assert baseline.acceptance_length is None
    assert 1.1 < fastmtp.acceptance_length < 4
    assert len(fastmtp.acceptance_per_step) == 3
    assert fastmtp.acceptance_length == pytest.approx(1 + sum(fastmtp.acceptance_per_step), 1e-3)
    assert fastmtp.counters_missing == 0
    assert fastmtp.cache_flushed
    assert fastmtp.decode_tokens_per_second > 0
    assert fastmtp.inter_token_milliseconds["p50"] > 0


def test_both_apis_see_the_same_answers(rows):
    for name in ("baseline", "fastmtp"):
        native, compatible = rows["sglang"][name], rows["openai"][name]
        assert native.output_tokens == compatible.output_tokens
        assert native.prompt_tokens == compatible.prompt_tokens
    assert rows["sglang"]["fastmtp"].acceptance_length == pytest.approx(
        rows["openai"]["fastmtp"].acceptance_length, rel=0.05
    )


@pytest.mark.slow
def test_stages(checkpoints, tmp_path):
    """`fastmtp_benchmarks.stages` in its own process, whose engines it starts and times."""
    output = tmp_path / "stages.json"
    command = [
        *(sys.executable, "-m", "fastmtp_benchmarks.stages", "--model", str(checkpoints.mimo)),
        *("--num-steps", "2", "--batch-sizes", "2", "--tokens", "24", "--output", str(output)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads(output.read_text())["rows"]
    assert row["configuration"] == "fastmtp"
    assert set(row["milliseconds"]) == {"decode", "draft", "draft_head", "verify", "draft_extend"}
    assert row["milliseconds"]["draft_head"] < row["milliseconds"]["draft"]
    assert 1.2 < row["acceptance_length"] <= 3
    assert row["tokens_per_second"]["fastmtp"] > 0
