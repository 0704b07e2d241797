"""Draft lists by language: each request of a mixed batch drafts from its own, answers stay equal.

The target's text is known (`chains.py`), so that a draft is right exactly if the list holds it.
Run alone: pytest tests/served/test_routing.py (starts two tiny servers).
"""

import re
from concurrent.futures import ThreadPoolExecutor

import chains
import httpx
import pytest
from client import Answer, acceptance_length, generate

from fastmtp_sglang.serving.routing.router import HALF_LIFE

K = 3


def _answers(url: str, cases: list[tuple[list[int], dict]]):
    with ThreadPoolExecutor(len(cases)) as pool:
        futures = [
            pool.submit(generate, url, prompt, ignore_eos=True, **options)
            for prompt, options in cases
        ]
        return [future.result() for future in futures]


def _assert_known(answers: list[Answer], cases: list[tuple[list[int], dict]]) -> None:
    """What the target says by itself."""
    for answer, (prompt, options) in zip(answers, cases, strict=True):
        assert list(answer.ids) == chains.continued(prompt, options["max_new_tokens"])


def _mixed(tokens: int) -> list[tuple[list[int], dict]]:
    languages = ("zh", "en", "code", "ru") * 3
    return [
        (chains.prompt(language, 16 + i), {"max_new_tokens": tokens})
        for i, language in enumerate(languages)
    ]


def test_rows_of_one_batch_draft_from_their_own_lists(servers):
    cases = _mixed(48)
    fast = _answers(servers("chains-routed"), cases)
    _assert_known(fast, cases)
    for answer in fast:  # Russian has no list and drafts from everything
        assert acceptance_length([answer]) > 0.9 * (K + 1)


def test_an_english_list_fails_chinese_and_routing_repairs_it(servers):
    cases = [(chains.prompt("zh", 16 + i), {"max_new_tokens": 24}) for i in range(8)]
    routed = _answers(servers("chains-routed"), cases)
    english = _answers(servers("chains-english-only"), cases)
    _assert_known(routed, cases)
    _assert_known(english, cases)
    assert acceptance_length(english) < 0.6 * acceptance_length(routed)


def test_a_failing_list_is_left_for_the_full_vocabulary(servers):
    """Korean's list lacks every token: without the fallback, acceptance would stay at 1."""
    prompt = chains.prompt("ko")
    short = generate(servers("chains-routed"), prompt, max_new_tokens=8, ignore_eos=True)
    assert acceptance_length([short]) == 1
    long = generate(servers("chains-routed"), prompt, max_new_tokens=160, ignore_eos=True)
    assert list(long.ids) == chains.continued(prompt, 160)
    # 160 tokens: about 10 one by one, then 4 at a time.
    assert long.meta["spec_verify_ct"] < 10 + 160 / (K + 1) + 5


def test_a_request_that_switches_language_is_rerouted(servers):
    prompt = list(chains.SWITCHING[:24])
    left = len(chains.SWITCHING) - len(prompt)
    answer = generate(servers("chains-routed"), prompt, max_new_tokens=300, ignore_eos=True)
    assert list(answer.ids) == chains.continued(prompt, 300)
    assert set(answer.ids[left:]) <= set(chains.CYCLES["zh"])
    # Without re-routing, each of the Chinese tokens would need a verification of its own.
    assert answer.meta["spec_verify_ct"] < HALF_LIFE + 300 / (K + 1)


def test_a_request_may_name_its_language(servers):
    def verifications(**custom) -> int:
        answer = generate(
            servers("chains-routed"),
            chains.prompt("en"),
            max_new_tokens=8,
            ignore_eos=True,
            custom_params=custom or None,
        )
        assert list(answer.ids) == list(chains.CYCLES["en"][24:32])
        return answer.meta["spec_verify_ct"]

    assert verifications() <= 3
    assert verifications(lang="en") <= 3
    assert verifications(lang="full") <= 3
    assert verifications(lang="zh") >= 7  # a list that lacks every token of the text
    assert verifications(lang="klingon") <= 3  # unknown: routed by its text, and logged


@pytest.fixture(scope="module")
def counters(servers) -> dict[tuple[str, str], float]:
    """Prometheus counters of the routed server, after all kinds of requests."""
    url = servers("chains-routed")
    _answers(url, _mixed(40))
    for text in (chains.prompt("ko"), list(chains.SWITCHING[:24])):
        generate(url, text, max_new_tokens=120, ignore_eos=True)
    pattern = re.compile(r'fastmtp:draft_list_(\w+)_total\{[^}]*list="(\w+)"[^}]*\} ([\d.e+]+)')
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return {(m[1], m[2]): float(m[3]) for m in pattern.finditer(text)}


def test_counters(counters):
    for language in ("en", "zh", "code", "full"):
        assert counters["accepted", language] > 0.8 * counters["drafted", language] > 0
    assert counters["accepted", "ko"] == 0
    assert counters["misses", "ko"] > 0
    assert counters["fallbacks", "ko"] >= 1
    assert counters["rerouted", "zh"] >= 1
