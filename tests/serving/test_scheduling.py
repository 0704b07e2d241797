"""Aborts, retraction, a warm cache: nobody else's answer changes, and nothing leaks.

Run alone: pytest tests/serving/test_scheduling.py (starts four tiny servers).
"""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from client import TIMEOUT, Answer, generate, generate_all
from prompts import long_prompt, requests

SPECULATIVE = ("mimo-native", "mimo-head-synchronous")


def flush(url: str) -> None:
    """Empty the prefix cache; SGLang refuses while a request or a lost slot holds pages."""
    for _ in range(50):
        if httpx.post(f"{url}/flush_cache", timeout=TIMEOUT).status_code == 200:
            return
        time.sleep(0.2)
    pytest.fail("the cache cannot be flushed: something still holds pages")


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_aborts(servers, kind):
    """A third of the requests are given up, some before they began; the others are answered."""
    url = servers(kind)
    cases = requests()[:48]
    base = generate_all(servers("mimo"), cases, concurrency=16, ignore_eos=True)
    generator = random.Random(7)
    given_up = {i for i in range(len(cases)) if i % 3 == 1}
    waits = [generator.uniform(0.0, 0.6) for _ in cases]

    def one(index: int) -> Answer | None:
        prompt, tokens = cases[index]
        if index not in given_up:
            return generate(url, prompt, max_new_tokens=tokens, ignore_eos=True)
        identifier = f"abort-{kind}-{index}"
        cancel = threading.Timer(
            waits[index],
            lambda: httpx.post(f"{url}/abort_request", json={"rid": identifier}, timeout=TIMEOUT),
        )
        cancel.start()
        body = {
            "text": prompt,
            "rid": identifier,
            "sampling_params": {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True},
        }
        httpx.post(f"{url}/generate", json=body, timeout=TIMEOUT)
        cancel.join()
        return None

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(len(cases))))
    differing = [
        i for i, answer in enumerate(answers) if answer and answer.visible != base[i].visible
    ]
    assert not differing
    flush(url)
    again = generate_all(url, cases[:12], concurrency=6, ignore_eos=True)
    assert [a.visible for a in again] == [a.visible for a in base[:12]]


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_clients_that_hang_up(servers, kind):
    url = servers(kind)
    for index in range(6):
        body = {
            "text": "Once upon a time",
            "stream": True,
            "sampling_params": {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True},
        }
        with httpx.stream("POST", f"{url}/generate", json=body, timeout=TIMEOUT) as response:
            for count, _ in enumerate(response.iter_lines()):
                if count > 2 * index:
                    break
    flush(url)
    base = generate(servers("mimo"), "Once upon a time", max_new_tokens=24, ignore_eos=True)
    fast = generate(url, "Once upon a time", max_new_tokens=24, ignore_eos=True)
    assert fast.visible == base.visible


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_a_warm_cache_drafts_as_a_cold_one(servers, kind):
    """The head's keys are cached with the target's: as many drafts are accepted."""
    url = servers(kind)
    prompt = long_prompt()
    flush(url)
    cold = generate(url, prompt, max_new_tokens=40, ignore_eos=True)
    warm = generate(url, prompt, max_new_tokens=40, ignore_eos=True)
    assert warm.meta["cached_tokens"] > 0.9 * warm.meta["prompt_tokens"]
    assert warm.visible == cold.visible
    assert warm.meta["spec_verify_ct"] == cold.meta["spec_verify_ct"]
    # A second turn, upon what was generated.
    longer = prompt + cold.text + "\nThen it goes on:"
    continued = generate(url, longer, max_new_tokens=24, ignore_eos=True)
    base = generate(servers("mimo"), longer, max_new_tokens=24, ignore_eos=True)
    assert continued.visible == base.visible


def test_retraction(servers):
    """Running requests are put back and taken up again, and nobody can tell."""
    cases = [(f"{prompt} {i}", 60) for i, (prompt, _) in enumerate(requests()[:24])]
    base = generate_all(servers("mimo"), cases, concurrency=24, ignore_eos=True)
    fast = generate_all(servers("mimo-retracting"), cases, concurrency=24, ignore_eos=True)
    assert [a.visible for a in fast] == [a.visible for a in base]
    metrics = httpx.get(f"{servers('mimo-retracting')}/metrics", timeout=TIMEOUT).text
    retracted = [
        float(line.rsplit(" ", 1)[1])
        for line in metrics.splitlines()
        if line.startswith("sglang:num_retracted_requests_total")
    ]
    assert sum(retracted) > 0, "nothing was put back: the test shows nothing"
    flush(servers("mimo-retracting"))
