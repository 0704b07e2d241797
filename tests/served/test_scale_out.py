"""Two of our servers as one: behind SGLang's router, and as the endpoints of a distillation.

Run alone: pytest tests/served/test_scale_out.py (starts three tiny servers and the router).
"""

import json
import signal
import subprocess
import sys
import time
from collections import Counter

import httpx
import pytest
from client import assert_equal, flush, generate, generate_all
from prompts import requests
from typer.testing import CliRunner

from fastmtp_sglang.cli import app
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.servers.server_process import free_port

pytestmark = pytest.mark.slow
WORDS = (
    *("river", "stone", "winter", "garden", "engine"),
    *("letter", "coffee", "paper", "mountain", "bread"),
)
WORKERS = ("mimo-native", "mimo-head-synchronous")


@pytest.fixture
def router(servers, tmp_path):
    """The URL of a router in front of both."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "sglang_router.launch_router", "--policy", "round_robin"),
        *("--port", str(port), "--prometheus-port", str(free_port())),
        *("--worker-urls", *map(servers, WORKERS)),
    ]
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "router.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(120):
            try:
                if httpx.get(f"{url}/health_generate", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        else:
            pytest.fail((tmp_path / "router.log").read_text()[-2000:])
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def test_behind_a_router(servers, router):
    cases = requests()[:40]
    base = generate_all(servers("mimo"), cases, concurrency=16, ignore_eos=True)
    fast = generate_all(router, cases, concurrency=16, ignore_eos=True)
    assert_equal(fast, base)
    # K is 3 on one of them and 5 on the other.
    steps = {len(a.meta["spec_accepted_per_step"]) for a in fast if "spec_verify_ct" in a.meta}
    assert steps == {3, 5}


def test_distillation_from_both(servers, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"turns": [f"{word} " * 60]}) + "\n" for word in WORDS))
    for kind in WORKERS:
        flush(servers(kind))
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app,
        [
            *("distill", "--model", str(SMOLLM2.checkpoint()), "--prompts", str(rows)),
            *("--output", str(out), "--max-new-tokens", "12", "--concurrency", "8"),
            *(flag for kind in WORKERS for flag in ("--endpoint", servers(kind))),
        ],
    )
    assert result.exit_code == 0, (result.output, result.exception)
    records = [
        json.loads(line) for path in out.glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    assert Counter(record["conversation"] for record in records) == {
        f"rows/{i}/0": 1 for i in range(len(WORDS))
    }
    # Who has answered a prompt has it in its cache.
    answered = {
        kind: sum(
            generate(servers(kind), record["prompt_ids"], max_new_tokens=1).meta["cached_tokens"]
            > 60
            for record in records
        )
        for kind in WORKERS
    }
    assert sum(answered.values()) == len(WORDS)
    assert min(answered.values()) >= 3, answered
