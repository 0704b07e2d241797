"""What is counted of drafts is what clients got: 1 + verifications + counted drafts tokens.

Every draft of the `chains` servers is right, so that runs of K + 1 = 4 tokens meet every end.
Run alone: pytest tests/served/test_acceptance.py (starts three tiny servers).
"""

import re
from concurrent.futures import ThreadPoolExecutor

import chains
import httpx
import pytest
from client import TIMEOUT, Answer, generate
from features import GRAMMARS

K = 3
PROMPT = chains.prompt("en")
NEXT = list(chains.CYCLES["en"])[len(PROMPT) :]


def check(answer: Answer) -> None:
    """The identity, and that each field of `meta_info` is computed from the same counts."""
    meta = answer.meta
    verifications, drafts = meta["spec_verify_ct"], meta["spec_num_correct_drafts"]
    assert len(answer.ids) == meta["completion_tokens"] == 1 + verifications + drafts
    assert meta["spec_accept_length"] == 1 + drafts / verifications
    assert meta["spec_accept_rate"] == drafts / (K * verifications)
    histogram = meta["spec_correct_drafts_histogram"]
    assert sum(histogram) == verifications
    per_step = [sum(histogram[step:]) for step in range(1, K + 1)]
    assert meta["spec_accepted_per_step"] == per_step
    assert sum(per_step) == drafts


@pytest.mark.parametrize("kind", ["chains-routed", "chains-english-only"])
def test_an_answer_that_ends_inside_a_run(servers, kind):
    answer = generate(servers(kind), PROMPT, max_new_tokens=6, ignore_eos=True)
    assert list(answer.ids) == NEXT[:6]
    check(answer)
    assert answer.meta["spec_verify_ct"] == 2
    assert answer.meta["spec_accept_length"] == 2.5
    assert answer.meta["spec_accepted_per_step"] == [1, 1, 1]


def ends(text: str) -> dict[str, dict]:
    """Sampling parameters by what ends the answer; `text` is the text of its 8th to 10th token."""
    return {
        **{f"length {n}": {"max_new_tokens": n, "ignore_eos": True} for n in range(2, 14)},
        "stop token id": {"max_new_tokens": 40, "stop_token_ids": [NEXT[6]]},
        "stop string": {"max_new_tokens": 40, "stop": [text]},
        "stop regex": {"max_new_tokens": 40, "stop_regex": [re.escape(text)]},
    }


def test_every_end(servers):
    """Also of several requests at once, whose ends others' verifications go past."""
    url = servers("chains-routed")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(httpx.get(f"{url}/model_info").json()["model_path"])
    text = tokenizer.decode(NEXT[:10])[len(tokenizer.decode(NEXT[:7])) :]
    cases = ends(text)
    with ThreadPoolExecutor(len(cases)) as pool:
        answers = list(pool.map(lambda s: generate(url, PROMPT, **s), cases.values()))
    for name, answer in zip(cases, answers, strict=True):
        assert list(answer.ids) == NEXT[: len(answer.ids)]
        assert len(answer.ids) < 40, name
        check(answer)


def test_grammars_and_eos(servers):
    """Of a head whose drafts are often wrong: any count may be the last one."""
    url = servers("mimo-native")
    cases = [
        (f"Fill in the form: {i}", {"max_new_tokens": 24 + i, **GRAMMARS[i % len(GRAMMARS)]})
        for i in range(16)
    ]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda c: generate(url, c[0], **c[1]), cases))
    assert any(answer.finish_reason["type"] == "stop" for answer in answers)
    for answer in answers:
        if "spec_verify_ct" in answer.meta:
            check(answer)


def test_the_gauge_of_the_server(servers):
    """SGLang's own, of the last five decoding steps: two verifications an answer, of 2.5 tokens."""
    url = servers("chains-routed")
    for _ in range(8):
        generate(url, PROMPT, max_new_tokens=6, ignore_eos=True)
    lines = httpx.get(f"{url}/metrics", timeout=TIMEOUT).text.splitlines()
    (gauge,) = (line for line in lines if line.startswith("sglang:spec_accept_length{"))
    assert 1 <= float(gauge.rsplit(" ", 1)[1]) <= 3.25
