"""Prompts read by one server and answers decoded by another are those of one server alone.

Keys, values and drafts cross by Mooncake over TCP on loopback: `pip install
mooncake-transfer-engine-non-cuda`, and Debian's libibverbs1, librdmacm1 and libnuma1.
Run alone: pytest -m slow tests/served/test_disaggregation.py (starts three SmolLM2 servers).
"""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from client import TIMEOUT

from fastmtp_sglang.servers.server_process import ServerProcess, free_port

pytestmark = pytest.mark.slow

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "List three reasons to learn a second language.\n1.",
    "从前有一座山",
    "class Stack:\n    def __init__(self):\n",
]
OPTIONS = {
    "greedy": {},
    "penalties": {"frequency_penalty": 0.7, "repetition_penalty": 1.1},
    "seeds": {"temperature": 0.8, "top_p": 0.9, "sampling_seed": 5},
}


@pytest.fixture(scope="module")
def nodes(checkpoints, tmp_path_factory):
    """URLs of one server alone, of the one that prefills and the one that decodes, and a port."""
    pytest.importorskip("mooncake.engine", exc_type=ImportError)
    logs, bootstrap = tmp_path_factory.mktemp("nodes"), free_port()
    common = [
        *("--dtype", "float32", "--max-total-tokens", "12000", "--sleep-on-idle"),
        *("--mem-fraction-static", "0.95"),
    ]
    both = [
        *("--speculative-algorithm", "fastmtp", "--speculative-num-steps", "3"),
        *("--speculative-draft-model-path", str(checkpoints.smollm2_head)),
        *("--disaggregation-transfer-backend", "mooncake"),
        *("--disaggregation-bootstrap-port", str(bootstrap)),
    ]
    flags = {
        # Only so do SGLang's own penalties see the tokens before (`penalties`).
        "alone": ["--disable-overlap-schedule"],
        "prefill": [*both, "--disaggregation-mode", "prefill"],
        # Of a prompt that it has met, this one keeps what it has, and only the rest crosses.
        "decode": [
            *(*both, "--disaggregation-mode", "decode"),
            "--disaggregation-decode-enable-radix-cache",
        ],
    }
    servers = [
        ServerProcess(
            checkpoints.smollm2,
            [*common, *of_node],
            env={"MOONCAKE_PROTOCOL": "tcp", "MC_FORCE_TCP": "1"},
            log_path=logs / f"{name}.log",
        )
        for name, of_node in flags.items()
    ]
    try:
        for server in servers:
            server.start()
        yield [*(server.url for server in servers), bootstrap]
    finally:
        for server in servers:
            server.stop(timeout=0)


def ask(url: str, body: dict) -> dict:
    response = httpx.post(f"{url}/generate", json=body, timeout=TIMEOUT)
    response.raise_for_status()
    return response.json()


@pytest.mark.parametrize("kind", OPTIONS)
def test_equal(nodes, kind):
    """Languages, penalties and first drafts arrive with the request (`serving.disaggregation`)."""
    alone, prefill, decode, bootstrap = nodes
    sampling = {"temperature": 0, "max_new_tokens": 48, "ignore_eos": True, **OPTIONS[kind]}

    def both(numbered: tuple[int, str]) -> tuple[dict, dict]:
        number, prompt = numbered
        body = {"text": prompt, "sampling_params": sampling}
        expected = ask(alone, body)
        body |= {
            "bootstrap_host": "127.0.0.1",
            "bootstrap_port": bootstrap,
            # Small numbers are those of SGLang's own requests.
            "bootstrap_room": 10**9 + list(OPTIONS).index(kind) * 1000 + number,
        }
        with ThreadPoolExecutor(2) as pool:
            there = pool.submit(ask, prefill, body)
            answer = ask(decode, body)
            there.result()
        return expected, answer

    with ThreadPoolExecutor(3) as pool:
        pairs = list(pool.map(both, enumerate(PROMPTS)))
    assert [answer["output_ids"] for _, answer in pairs] == [e["output_ids"] for e, _ in pairs]
    verifications = sum(answer["meta_info"]["spec_verify_ct"] for _, answer in pairs)
    # A tenth of all drafts at least is right.
    assert len(PROMPTS) * 48 / verifications > 1.1
