"""Draft trees: what a client gets is what it gets without speculation, over HTTP.

Two servers draft trees for the target "mimo": one with overlap scheduling, one synchronous, with
pages of 16 slots and requests that are put back all the time.
Run alone: pytest tests/served/test_tree.py (starts six servers, one after the other).
"""

import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import chains
import httpx
import pytest
import tiny_models as models
import torch
from client import (
    TIMEOUT,
    Answer,
    acceptance_length,
    assert_equal,
    flush,
    generate,
    generate_all,
)
from distributions import PLACES, p_value, sampled, sampled_alone
from features import GRAMMARS, PENALTIES
from prompts import requests

# The second one has pages of 16 slots, synchronous scheduling, small chunks and requests put back.
KINDS = ("mimo-tree", pytest.param("mimo-tree-pages", marks=pytest.mark.slow))
_UNLIKELY = 1e-5


@pytest.fixture(scope="module")
def baseline(servers) -> list[Answer]:
    return generate_all(servers("mimo"), requests(), concurrency=16, ignore_eos=True)


def ask(url: str, cases: list[tuple], concurrency: int = 8) -> list[Answer]:
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda case: generate(url, case[0], **case[1]), cases))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("concurrency", "stream"), [(16, False), (16, True), (1, False)])
def test_equal(servers, baseline, kind, concurrency, stream):
    chosen = slice(None) if concurrency > 1 else slice(None, None, 7)
    fast = generate_all(
        servers(kind), requests()[chosen], concurrency=concurrency, ignore_eos=True, stream=stream
    )
    assert_equal(fast, baseline[chosen])
    assert acceptance_length(fast) > 2.2
    flush(servers(kind))  # no page is lost


@pytest.mark.parametrize("kind", KINDS)
def test_a_cached_prefix_and_other_requests_beside(servers, baseline, kind):
    """The same prompts again: their keys are those that trees were verified upon."""
    for _ in range(2):
        fast = generate_all(servers(kind), requests()[:24], concurrency=8, ignore_eos=True)
        assert_equal(fast, baseline[:24])


@pytest.mark.parametrize("kind", KINDS)
def test_stops_within_an_accepted_path(servers, kind):
    prompt = "def fibonacci(n):\n    "
    free = generate(servers("mimo"), prompt, max_new_tokens=24, ignore_eos=True)
    stops = list(dict.fromkeys(free.ids))
    cases = [(prompt, {"max_new_tokens": 24, "stop_token_ids": [token]}) for token in stops]
    cases += [
        (prompt, {"max_new_tokens": 24, "stop": [free.text[i + 4 : i + 7], free.text[i : i + 2]]})
        for i in range(4, len(free.text) - 8, 4)
    ]
    assert_equal(ask(servers(kind), cases), ask(servers("mimo"), cases))


@pytest.mark.parametrize("kind", KINDS)
def test_grammars(servers, kind):
    cases = [
        (text, {"max_new_tokens": 24 + 4 * (i % 5), **GRAMMARS[i % 4]})
        for i, text in enumerate(["Fill in: ", "Call me at ", "Answer: ", "Once "] * 4)
    ]
    fast = ask(servers(kind), cases)
    assert_equal(fast, ask(servers("mimo"), cases))
    assert sum(a.meta.get("spec_num_correct_drafts", 0) for a in fast) > 20


@pytest.mark.parametrize("kind", KINDS[:1])
def test_log_probabilities_and_hidden_states_are_those_of_the_path(servers, kind):
    body = {
        "text": [f"{i} apples and {i + 3} pears" for i in range(6)],
        "sampling_params": {"temperature": 0, "max_new_tokens": 14, "ignore_eos": True},
        **{"return_logprob": True, "top_logprobs_num": 3, "return_hidden_states": True},
    }
    answers = [
        httpx.post(f"{servers(where)}/generate", json=body, timeout=TIMEOUT).json()
        for where in (kind, "mimo")
    ]
    for fast, base in zip(*answers, strict=True):
        assert fast["output_ids"] == base["output_ids"]
        ours, theirs = fast["meta_info"], base["meta_info"]
        assert ours["spec_num_correct_drafts"] > 3
        shares = [[p for p, *_ in meta["output_token_logprobs"]] for meta in (ours, theirs)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-4)
        tops = [[[t for _, t, *_ in p] for p in m["output_top_logprobs"]] for m in (ours, theirs)]
        assert tops[0] == tops[1]
        # The first entry holds all rows of the prefill.
        states = [
            torch.tensor([first[-1], *others])
            for first, *others in (ours["hidden_states"], theirs["hidden_states"])
        ]
        torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "reserved"),
    [("mimo-tree", 3 * 8), pytest.param("mimo-tree-pages", 4 * 8, marks=pytest.mark.slow)],
)
def test_up_to_the_last_token_that_fits(servers, kind, reserved):
    """Drafts of a tree take more slots behind a request than its rows are."""
    prompts = [[1000 + (i + j) % 2000 for i in range(4096 - reserved - 12)] for j in range(2)]
    cases = [(prompt, {"max_new_tokens": 12, "ignore_eos": True}) for prompt in prompts]
    assert_equal(ask(servers(kind), cases), ask(servers("mimo"), cases))
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        generate(servers(kind), prompts[0], max_new_tokens=13)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.slow, id="all"),
        pytest.param({"top_k": 6, "top_p": 0.9, "min_p": 0.15}, id="filtered"),
    ],
)
def test_sampled_siblings_compete_fairly(servers, settings):
    """Two-sample chi-square at each place, as in test_sampling."""
    fast = sampled(servers("mimo-tree"), **settings)
    base = sampled_alone(servers("mimo"), tuple(settings.items()))
    for place in range(PLACES):
        tokens = [[answer.ids[place] for answer in answers] for answers in (fast, base)]
        assert p_value(*tokens) > _UNLIKELY, (place, tokens)
    pairs = [[answer.ids[1:3] for answer in answers] for answers in (fast, base)]
    assert p_value(*pairs) > _UNLIKELY
    assert acceptance_length(fast) > 1.2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_penalties_follow_each_rows_own_path(servers, kind):
    """Text that repeats itself, so that penalties decide; every kind of them, and none, beside."""
    loops = [[*range(3000, 3000 + i % 7), token] for i, token in enumerate([*models.LOOPS] * 3)]
    prompts = [*loops, *(prompt for prompt, _ in requests()[:12])]
    cases = [
        (prompt, {"max_new_tokens": 16 + i % 20, "ignore_eos": True, **penalty})
        for i, (prompt, penalty) in enumerate(
            zip(prompts, itertools.cycle(PENALTIES), strict=False)
        )
    ]
    fast = ask(servers(kind), cases)
    assert_equal(fast, ask(servers("mimo-synchronous"), cases, 1))
    assert acceptance_length(fast) > 1.3


@pytest.mark.slow
def test_each_branch_drafts_from_its_requests_list(servers):
    """Rows of one batch in four languages; a list that fails is left; the counters say so."""
    languages = ("zh", "en", "code", "ru") * 3
    cases = [
        (chains.prompt(language, 16 + i), {"max_new_tokens": 48, "ignore_eos": True})
        for i, language in enumerate(languages)
    ]
    cases.append((chains.prompt("ko"), {"max_new_tokens": 80, "ignore_eos": True}))
    fast = ask(servers("chains-tree"), cases, len(cases))
    assert_equal(fast, ask(servers("chains"), cases, len(cases)))
    for answer in fast[:-1]:
        assert acceptance_length([answer]) > 0.9 * 4
    metrics = httpx.get(f"{servers('chains-tree')}/metrics", timeout=TIMEOUT).text
    steps = dict(re.findall(r'fastmtp:accepted_tokens_total\{step="(\d)"\} ([\d.]+)', metrics))
    assert set(steps) == {"1", "2", "3"}
    verified = float(re.search(r"fastmtp:verifications_total ([\d.]+)", metrics)[1])
    assert float(steps["1"]) > 0.8 * verified


def numbered(count: int) -> list[tuple[str, int]]:
    """Distinct prompts, with the number of tokens that their answers have."""
    return [
        (f"{i}. {prompt}", tokens)
        for i, (prompt, tokens) in enumerate(itertools.islice(itertools.cycle(requests()), count))
    ]


def asked_in_three_ways(
    url: str, cases: list[tuple[str, int]], base: list[Answer], every: int, **options
) -> list[list[Answer]]:
    """Answers to one half of the cases, to the other half streamed, and to some one at a time.

    They must be those of `base`.
    """
    half = len(cases) // 2
    asked = []
    for part, concurrency, stream in (
        (slice(half), 16, False),
        (slice(half, None), 16, True),
        (slice(None, None, every), 1, False),
    ):
        fast = generate_all(url, cases[part], concurrency=concurrency, stream=stream, **options)
        assert_equal(fast, base[part])
        asked.append(fast)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mimo-tree", "mimo-tree-pages"])
def test_many_answers(servers, kind):
    """400 of each, half of them streamed, and 50 one at a time."""
    cases = numbered(400)
    base = generate_all(servers("mimo"), cases, concurrency=16, ignore_eos=True)
    asked_in_three_ways(servers(kind), cases, base, 8, ignore_eos=True)


@pytest.mark.slow
def test_the_real_model(servers):
    """240 answers, half of them streamed, and 24 one at a time."""
    cases = numbered(240)
    base = generate_all(servers("smollm2"), cases, concurrency=16)
    for fast in asked_in_three_ways(servers("smollm2-tree"), cases, base, 10):
        assert acceptance_length(fast) > 1.5
