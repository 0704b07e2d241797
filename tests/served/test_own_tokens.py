"""Requests draft from tokens of their own that their list lacks: more is accepted, nothing changes.

Korean's list lacks every token of its text (`chains.py`), so that what is accepted there was in the
prompt or in the answer so far.
Run alone: pytest tests/served/test_own_tokens.py (starts three tiny servers).
"""

import re
from concurrent.futures import ThreadPoolExecutor

import chains
import httpx
import pytest
from client import Answer, acceptance_length, generate

K = 3
KINDS = ("chains-own", "chains-own-tree", "chains-own-rejection")
# What the answer will say, and then what it follows.
COMING, BEFORE = chains.CYCLES["ko"][24:60], chains.CYCLES["ko"][:24]
PROMPT = [*COMING, *BEFORE]


def _answers(url: str, prompts: list[list[int]], tokens: int, **options) -> list[Answer]:
    with ThreadPoolExecutor(len(prompts)) as pool:
        futures = [
            pool.submit(generate, url, prompt, max_new_tokens=tokens, ignore_eos=True, **options)
            for prompt in prompts
        ]
        return [future.result() for future in futures]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_the_prompt_are_drafted(servers, kind):
    (answer,) = _answers(servers(kind), [PROMPT], len(COMING))
    assert list(answer.ids) == list(COMING)
    # With rejection sampling drafts are drawn, and now and then another one than the best.
    share = 0.6 if kind == "chains-own-rejection" else 0.9
    assert acceptance_length([answer]) > share * (K + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_of_a_batch_has_its_own(servers, kind):
    """Some with what they will say, some without, and those whose list holds it anyway."""
    prompts = [
        PROMPT,
        list(BEFORE),
        chains.prompt("en"),
        chains.prompt("zh"),
        PROMPT[:9] + PROMPT[36:],
    ] * 2
    tokens = 9  # behind more of them a list that holds none is left
    most = 5 if kind == "chains-own-rejection" else 3
    answers = _answers(servers(kind), prompts, tokens)
    for number, (answer, prompt) in enumerate(zip(answers, prompts, strict=True)):
        assert list(answer.ids) == chains.continued(prompt, tokens)
        verifications = answer.meta["spec_verify_ct"]
        assert verifications >= 7 if number % 5 == 1 else verifications <= most


def test_tokens_of_the_answer_are_drafted_from_when_they_come_back(servers):
    """A named list that lacks all of it."""
    prompt, again = chains.prompt("en", 16), chains.CYCLES["en"][16:24]
    first = generate(
        servers("chains-own"), prompt, max_new_tokens=8, ignore_eos=True,
        custom_params={"lang": "zh"},
    )  # fmt: skip
    assert list(first.ids) == list(again)
    assert first.meta["spec_verify_ct"] >= 7
    # A second turn of the conversation, which the prefix cache knows.
    second = generate(
        servers("chains-own"), [*prompt, *first.ids, *prompt], max_new_tokens=8, ignore_eos=True,
        custom_params={"lang": "zh"},
    )  # fmt: skip
    assert list(second.ids) == list(again)
    assert second.meta["spec_verify_ct"] <= 3


def test_counters_say_what_was_avoided(servers):
    url = servers("chains-own")
    _answers(url, [PROMPT] * 2, 36)
    for _ in range(3):  # counters are copied while steps are made
        generate(url, PROMPT, max_new_tokens=36, ignore_eos=True)
    text = httpx.get(f"{url}/metrics", timeout=60).text
    pattern = re.compile(r'fastmtp:draft_list_avoided_total\{[^}]*list="(\w+)"[^}]*\} ([\d.e+]+)')
    avoided = {match[1]: float(match[2]) for match in pattern.finditer(text)}
    assert avoided["ko"] > 20
    assert avoided.get("en", 0) == 0
    log = (servers.logs / "chains-own.log").read_text()
    assert re.search(r"ko accepted \d+% of \d+ drafts, misses \d+ \([1-9]\d* avoided\)", log)
