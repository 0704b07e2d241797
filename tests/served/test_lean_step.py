"""A batch that wants nothing but tokens is decoded by sweeps, any other one in SGLang's way: both
give the same tokens, and the same drafts accepted.

Log-probabilities are what makes a batch take SGLang's way here.
Run alone: pytest tests/served/test_lean_step.py (starts six servers; slow: SmolLM2)
"""

from concurrent.futures import ThreadPoolExecutor

import chains
import httpx
import pytest
from client import TIMEOUT
from prompts import requests

SAMPLINGS = [
    {"temperature": 0},
    {"temperature": 0.8, "top_p": 0.9, "sampling_seed": 5},
    {"temperature": 0, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    {"temperature": 0, "logit_bias": {"11": 4.0, "30": -5.0}},
]
# What one decides and counts of it.
COUNTS = ("spec_verify_ct", "spec_num_correct_drafts", "spec_accepted_per_step", "finish_reason")


def answer(url: str, prompt: str | list[int], sampling: dict, with_logprobs: bool) -> tuple:
    key = "text" if isinstance(prompt, str) else "input_ids"
    sampling = {"max_new_tokens": 24, "ignore_eos": True, **sampling}
    body = {key: prompt, "sampling_params": sampling, "return_logprob": with_logprobs}
    response = httpx.post(f"{url}/generate", json=body, timeout=TIMEOUT)
    response.raise_for_status()
    meta = response.json()["meta_info"]
    assert bool(meta.get("output_token_logprobs")) == with_logprobs
    return response.json()["output_ids"], {name: meta[name] for name in COUNTS}


@pytest.mark.parametrize(
    "kind",
    [
        "chains-routed",
        "chains-own",
        "qwen3-listed",
        "gemma-listed-tree",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("chains-tree", "gemma-listed", "smollm2-fastmtp", "smollm2-tree")
        ),
    ],
)
def test_both_ways_say_the_same(servers, kind):
    url = servers(kind)
    prompts = [text for text, _ in requests()[::9]][:3]
    if kind.startswith("chains"):
        # The second one's list lacks all of it, but for what the request says itself.
        korean = chains.CYCLES["ko"]
        prompts = [chains.prompt("en"), [*korean[24:60], *korean[:24]]]
    for sampling in SAMPLINGS:
        with ThreadPoolExecutor(len(prompts)) as pool:
            ways = [
                list(pool.map(lambda p: answer(url, p, sampling, way), prompts))  # noqa: B023
                for way in (False, True)
            ]
        assert ways[0] == ways[1]
    # The short way is open, and target and head are recorded in each mode that a request goes
    # through.
    log = (servers.logs / f"{kind}.log").read_text()
    assert "Ordinary batches are decoded by sweeps of recorded passes" in log
    assert log.count("The model's layers are recorded") >= 4
    assert "run one by one" not in log
