"""Each way into SGLang serves FASTMTP, with the answers of the target alone.

Here interpreters of their own start: two servers, by `sglang serve` and the older way in, which
SGLang warns of, and `sglang.Engine` in a script. Most other servers are forked (`warm_python`).

Alone: pytest tests/served/test_entry_points.py (starts engines and a server)
"""

import chains
import psutil
import pytest
from client import generate
from engine_runs import MAX_NEW_TOKENS


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


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("mimo-by-serve", "sglang serve"),
        pytest.param(
            *("chains-by-launch-server", "-m sglang.launch_server"), marks=pytest.mark.slow
        ),
    ],
)
def test_server(servers, kind, command):
    url = servers(kind)
    port = f"--port {url.rpartition(':')[2]}"
    running = [" ".join(process.info["cmdline"]) for process in psutil.process_iter(["cmdline"])]
    (line,) = (line for line in running if port in line)
    assert command in line
    answer = generate(url, chains.prompt("en"), max_new_tokens=24, ignore_eos=True)
    assert 0 < answer.meta["spec_verify_ct"] < 20
    if kind == "chains-by-launch-server":  # Of the other one's answers, test_equality.py.
        assert list(answer.ids) == list(chains.CYCLES["en"][24:48])
