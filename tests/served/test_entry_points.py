"""Each way into SGLang serves FASTMTP, with the answers of the target alone.

`sglang serve` is what every other test of this folder starts but for one kind of server; that one
and `sglang.Engine` in a script are here.

Alone: pytest tests/served/test_entry_points.py (starts four engines and a server)
"""

import chains
import psutil
import pytest
from client import generate
from engine_runs import MAX_NEW_TOKENS, EngineRun, run_all


@pytest.fixture(scope="module")
def engine_runs(tmp_path_factory) -> dict[str, EngineRun]:
    return run_all(tmp_path_factory.getbasetemp() / "engines")


def test_engine(engine_runs):
    """Its answers are the target's, as test_hidden_states.py shows, and drafts are accepted."""
    run = engine_runs["llama"]
    verifications = dict.fromkeys(run.prompts, 0)
    for record in run.records:
        if record["phase"] == "DRAFT_EXTEND_V2":
            for rid in record["rids"]:
                verifications[rid] += 1
    # Each token after the prefill's would need a step of its own.
    assert sum(verifications.values()) < 0.8 * len(verifications) * (MAX_NEW_TOKENS - 1)


def test_launch_server(servers):
    url = servers("chains-routed")
    port = f"--port {url.rpartition(':')[2]}"
    commands = [" ".join(process.info["cmdline"]) for process in psutil.process_iter(["cmdline"])]
    assert any("-m sglang.launch_server" in command and port in command for command in commands)
    answer = generate(url, chains.prompt("en"), max_new_tokens=24, ignore_eos=True)
    assert list(answer.ids) == list(chains.CYCLES["en"][24:48])
    assert 0 < answer.meta["spec_verify_ct"] < 12
