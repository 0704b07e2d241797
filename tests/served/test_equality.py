"""What a client gets with FASTMTP is what it gets without: every token id, over HTTP.

Run alone: pytest tests/served/test_equality.py (starts six servers, one after the other).
"""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from client import Answer, acceptance_length, assert_equal, generate, generate_all
from prompts import requests

SPECULATIVE = ("mimo-native", "mimo-head-synchronous")


@pytest.fixture(scope="module")
def baseline(servers) -> list[Answer]:
    """64 answers of the target alone, each of its whole length."""
    return generate_all(servers("mimo"), requests(), concurrency=16, ignore_eos=True)


@pytest.mark.parametrize("kind", SPECULATIVE)
@pytest.mark.parametrize("concurrency", [1, 16])
def test_head_that_accepts_much(servers, baseline, kind, concurrency):
    chosen = slice(None) if concurrency > 1 else slice(None, None, 7)
    fast = generate_all(servers(kind), requests()[chosen], concurrency=concurrency, ignore_eos=True)
    assert_equal(fast, baseline[chosen])
    assert acceptance_length(fast) > 2


def test_the_cpu_platform_under_sglangs_own_speculation(servers, baseline):
    """NEXTN: the same layer, drafted and verified without us."""
    fast = generate_all(servers("mimo-nextn"), requests()[:32], concurrency=16, ignore_eos=True)
    assert_equal(fast, baseline[:32])
    assert acceptance_length(fast) > 2


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_staggered_arrivals_streamed(servers, baseline, kind):
    cases = requests()[:24]

    def late(index: int) -> Answer:
        time.sleep(0.05 * index)
        prompt, tokens = cases[index]
        return generate(servers(kind), prompt, stream=True, max_new_tokens=tokens, ignore_eos=True)

    servers(kind)
    with ThreadPoolExecutor(len(cases)) as pool:
        fast = list(pool.map(late, range(len(cases))))
    assert_equal(fast, baseline[:24])


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_stop_token_at_every_position_of_an_accepted_run(servers, kind):
    prompt = "def fibonacci(n):\n    "
    free = generate(servers("mimo"), prompt, max_new_tokens=24, ignore_eos=True)
    stops = [token for i, token in enumerate(free.ids) if token not in free.ids[:i]]
    assert len(stops) >= 12

    def stopped(where: str) -> list[Answer]:
        with ThreadPoolExecutor(8) as pool:
            return list(
                pool.map(
                    lambda token: generate(
                        servers(where), prompt, max_new_tokens=24, stop_token_ids=[token]
                    ),
                    stops,
                )
            )

    base = stopped("mimo")
    assert {a.finish_reason["type"] for a in base} == {"stop"}
    assert_equal(stopped(kind), base)


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_stop_strings_in_any_order(servers, kind):
    """The first stop in the text ends it, wherever it stands in the list and in a run."""
    prompt = "def fibonacci(n):\n    "
    text = generate(servers("mimo"), prompt, max_new_tokens=24, ignore_eos=True).text
    starts = range(4, len(text) - 8, max(1, len(text) // 24))
    pairs = [[text[i + 4 : i + 7], text[i : i + 2]] for i in starts]
    assert len(pairs) >= 16

    def stopped(where: str) -> list[Answer]:
        with ThreadPoolExecutor(8) as pool:
            return list(
                pool.map(
                    lambda stop: generate(servers(where), prompt, max_new_tokens=24, stop=stop),
                    pairs,
                )
            )

    base = stopped("mimo")
    assert sum(a.finish_reason["type"] == "stop" for a in base) > 12
    assert_equal(stopped(kind), base)


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_every_output_length(servers, kind):
    prompt = "In 1969, the first humans"
    base = generate(servers("mimo"), prompt, max_new_tokens=16, ignore_eos=True)
    for tokens in range(1, 17):
        fast = generate(servers(kind), prompt, max_new_tokens=tokens, ignore_eos=True)
        assert fast.ids == base.ids[:tokens]
        assert fast.finish_reason == {"type": "length", "length": tokens}


def test_temperature_samples(servers):
    """Sampling never falls back to argmax: repeated answers differ, and seldom equal greedy's."""
    for kind in ("mimo-native", "mimo"):
        cases = [("Once upon a time", 12)] * 16
        sampled = generate_all(
            servers(kind), cases, concurrency=16, temperature=1.0, top_p=0.95, top_k=50
        )
        greedy = generate(servers(kind), "Once upon a time", max_new_tokens=12)
        assert len({a.ids for a in sampled}) > 8
        assert sum(a.ids == greedy.ids for a in sampled) < 4
