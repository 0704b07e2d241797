"""Aborts, retraction, a warm cache: nobody else's answer changes, and nothing leaks.

Run alone: pytest tests/served/test_scheduling.py (starts four tiny servers).
"""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from client import TIMEOUT, Answer, assert_equal, flush, generate, generate_all
from prompts import long_prompt, requests

SPECULATIVE = ("mimo-native", "mimo-head-synchronous")


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
    kept = [i for i, answer in enumerate(answers) if answer]
    assert_equal([answers[i] for i in kept], [base[i] for i in kept])
    flush(url)
    again = generate_all(url, cases[:12], concurrency=6, ignore_eos=True)
    assert_equal(again, base[:12])


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


def counters(url: str, name: str) -> float:
    """The sum of a Prometheus counter over its labels."""
    lines = httpx.get(f"{url}/metrics", timeout=TIMEOUT).text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{name}_total"))


def test_retraction(servers):
    """Running requests are put back and taken up again, and nobody can tell."""
    cases = [(f"{prompt} {i}", 60) for i, (prompt, _) in enumerate(requests()[:24])]
    base = generate_all(servers("mimo"), cases, concurrency=24, ignore_eos=True)
    url = servers("mimo-retracting")
    names = ("verifications", "accepted_tokens", "drafted_tokens")
    before = [counters(url, f"fastmtp:{name}") for name in names]
    fast = generate_all(url, cases, concurrency=24, ignore_eos=True)
    assert_equal(fast, base)
    assert counters(url, "sglang:num_retracted_requests") > 0, "nothing was put back"
    flush(url)
    # What the server has counted is what the answers say.
    verified = sum(a.meta["spec_verify_ct"] for a in fast)
    accepted = sum(a.meta["spec_num_correct_drafts"] for a in fast)
    now = [counters(url, f"fastmtp:{name}") for name in names]
    counted = [after - first for after, first in zip(now, before, strict=True)]
    assert counted == [verified, accepted, 3 * verified]
    for answer in fast:
        assert sum(answer.meta["spec_accepted_per_step"]) == answer.meta["spec_num_correct_drafts"]
        assert 1 <= answer.meta["spec_accept_length"] <= 4


@pytest.mark.slow  # Whether the urgent ones come in time depends on how fast the machine is.
def test_priority(servers):
    """Urgent requests push others out of the batch, and nobody's answer changes."""
    prompts = [f"{prompt} {i}" for i, (prompt, _) in enumerate(requests()[:32])]
    patient = [(prompt, 240) for prompt in prompts[:24]]
    urgent = [(prompt, 24) for prompt in prompts[24:]]
    base = generate_all(servers("mimo"), patient + urgent, concurrency=32, ignore_eos=True)
    url = servers("mimo-retracting")
    before = counters(url, "fastmtp:verifications")

    def timed(case: tuple[str, int], priority: int) -> tuple[Answer, float]:
        prompt, tokens = case
        answer = generate(url, prompt, priority=priority, max_new_tokens=tokens, ignore_eos=True)
        return answer, time.monotonic()

    with ThreadPoolExecutor(len(prompts)) as pool:
        waiting = [pool.submit(timed, case, 0) for case in patient]
        while counters(url, "fastmtp:verifications") == before:  # until some are being decoded
            assert not all(future.done() for future in waiting)
        served = [pool.submit(timed, case, 1) for case in urgent]
        answers, times = zip(*(future.result() for future in waiting + served), strict=True)
    assert_equal(answers, base)
    # Twelve run at once: whoever waits in line comes after half of the patient ones.
    assert max(times[24:]) < sorted(times[:24])[12]
