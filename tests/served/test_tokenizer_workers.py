"""Several processes that take requests: each refuses, counts and answers as a single one does.

SGLang's system spreads connections over them, so that everything is asked many times.
Run alone: pytest -m slow tests/served/test_tokenizer_workers.py (starts two tiny servers).
"""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from client import TIMEOUT, acceptance_length, assert_equal, generate, generate_all
from prompts import requests

pytestmark = pytest.mark.slow
ODD = (
    ({"input_ids": [10**6]}, "input_ids"),
    ({"text": ""}, "has no tokens"),
    ({"text": "a", "sampling_params": {"custom_params": {"lang": 5}}}, "lang"),
    ({"text": "a", "sampling_params": {"stop_regex": "("}}, "stop_regex"),
    ({"text": "a", "positional_embed_overrides": {"a": 1}}, "positional_embed_overrides"),
)


def test_answers_and_counters(servers):
    cases = requests()[:32]
    base = generate_all(servers("mimo"), cases, concurrency=16, ignore_eos=True)
    fast = generate_all(servers("mimo-tokenizers"), cases, concurrency=16, ignore_eos=True)
    assert_equal(fast, base)
    assert acceptance_length(fast) > 2
    drafted = [answer for answer in fast if answer.meta.get("spec_verify_ct")]
    assert all(len(answer.meta["spec_accepted_per_step"]) == 3 for answer in drafted)


@pytest.mark.parametrize(("body", "named"), ODD)
def test_each_refuses(servers, body, named):
    url = servers("mimo-tokenizers")

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{url}/generate", json=body, timeout=TIMEOUT)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(24)))
    assert {answer.status_code for answer in answers} == {400}
    assert all(named in answer.text for answer in answers)
    assert generate(url, "Once", max_new_tokens=4).ids
