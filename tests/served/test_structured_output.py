"""Answers under a grammar are those without speculation, beside plain requests.

A small model's text hardly ever fits a grammar by itself, so a mask that comes one token late, or
that has seen a rejected draft, shows at once.
Run alone: pytest tests/served/test_structured_output.py (starts three tiny servers).
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from client import TIMEOUT, Answer, assert_equal, generate
from features import GRAMMARS, PATTERN

SPECULATIVE = ("mimo-native", "mimo-head-synchronous")


def cases() -> list[tuple[str, dict]]:
    """24 requests; every fourth is a plain one."""
    texts = ("Fill in the form: ", "Call me at ", "Answer: ", "Once upon a time")
    return [
        (f"{texts[i % 4]}{i}", {"max_new_tokens": 24 + 4 * (i % 5), **GRAMMARS[i % 4]})
        for i in range(24)
    ]


def ask(url: str, concurrency: int, stream: bool = False) -> list[Answer]:
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda c: generate(url, c[0], stream=stream, **c[1]), cases()))


@pytest.fixture(scope="module")
def baseline(servers) -> list[Answer]:
    return ask(servers("mimo"), 8)


def test_the_reference_obeys(baseline):
    finished = 0
    for (_, options), answer in zip(cases(), baseline, strict=True):
        if answer.finish_reason["type"] != "stop":
            continue
        finished += 1
        if "json_schema" in options:
            assert set(json.loads(answer.text)) == {"name", "age", "tags"}
        elif "regex" in options:
            assert re.fullmatch(PATTERN, answer.text)
        elif "ebnf" in options:
            assert re.fullmatch(r"(yes|no|\d+)(,(yes|no|\d+))*\.", answer.text)
    assert finished > 6


@pytest.mark.parametrize("kind", SPECULATIVE)
@pytest.mark.parametrize(
    ("concurrency", "stream"),
    [pytest.param(1, False, marks=pytest.mark.slow), (8, False), (8, True)],
    ids=["1", "8", "8-stream"],
)
def test_equal(servers, baseline, kind, concurrency, stream):
    fast = ask(servers(kind), concurrency, stream)
    assert_equal(fast, baseline)


def test_drafts_are_accepted_under_a_grammar(servers):
    """Or the test above would say nothing about runs of accepted drafts."""
    answers = [a for a, (_, o) in zip(ask(servers("mimo-native"), 8), cases(), strict=True) if o]
    assert sum(a.meta.get("spec_num_correct_drafts", 0) for a in answers) > 20


@pytest.mark.parametrize("kind", SPECULATIVE)
@pytest.mark.parametrize(
    "broken",
    [{"regex": "(("}, {"json_schema": "{not json"}, {"ebnf": "root := "}, {"regex": "a" * 100000}],
    ids=["regex", "json", "ebnf", "huge"],
)
def test_a_broken_grammar_hurts_nobody_else(servers, kind, broken):
    url = servers(kind)

    def send(sampling: dict) -> httpx.Response:
        body = {
            "text": "Hi",
            "sampling_params": {"max_new_tokens": 8, "temperature": 0, **sampling},
        }
        return httpx.post(f"{url}/generate", json=body, timeout=TIMEOUT)

    with ThreadPoolExecutor(3) as pool:
        plain, wrong, other = pool.map(send, ({}, broken, {"regex": PATTERN}))
    assert wrong.status_code == 400 or len(json.dumps(broken)) > 1000, wrong.text
    assert plain.status_code == other.status_code == 200
    assert plain.json()["text"] == generate(servers("mimo"), "Hi", max_new_tokens=8).text
