"""What else a client reads: log-probabilities, usage, text cut anywhere, the context limit.

Run alone: pytest tests/served/test_outputs.py (starts three tiny servers).
"""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch
from client import TIMEOUT, generate
from prompts import requests

SPECULATIVE = ("mimo-native", "mimo-head-synchronous")
# What the servers of `conftest` are started with.
CONTEXT = 4096
RESERVED = {"mimo-native": 3 + 1, "mimo-head-synchronous": 5 + 1}


def native(url: str, prompt: str, **fields) -> dict:
    sampling = {"temperature": 0, "max_new_tokens": 20, "ignore_eos": True}
    body = {"text": prompt, "sampling_params": {**sampling, **fields.pop("sampling", {})}, **fields}
    response = httpx.post(f"{url}/generate", json=body, timeout=TIMEOUT)
    response.raise_for_status()
    return response.json()


def complete(url: str, **fields) -> httpx.Response:
    body = {"model": "default", "prompt": "Once upon", "temperature": 0, "max_tokens": 24, **fields}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=TIMEOUT)


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_logprobs(servers, kind):
    """One for each token, the target's own, top-k and the prompt's too; cut at the stop."""
    prompts = [prompt for prompt, _ in requests()[:12]]
    options = {"return_logprob": True, "top_logprobs_num": 3, "logprob_start_len": 0}

    def ask(where: str) -> list[dict]:
        with ThreadPoolExecutor(6) as pool:
            return list(pool.map(lambda p: native(servers(where), p, **options), prompts))

    for fast, base in zip(ask(kind), ask("mimo"), strict=True):
        assert fast["output_ids"] == base["output_ids"]
        for name in ("input_token_logprobs", "output_token_logprobs"):
            ours, theirs = fast["meta_info"][name], base["meta_info"][name]
            assert [t for _, t, *_ in ours] == [t for _, t, *_ in theirs]
            pairs = [(a[0], b[0]) for a, b in zip(ours, theirs, strict=True) if b[0] is not None]
            assert [a for a, _ in pairs] == pytest.approx([b for _, b in pairs], abs=1e-4)
        assert len(fast["meta_info"]["output_token_logprobs"]) == len(fast["output_ids"])
        tops = [
            [{t: p for p, t, *_ in place} for place in answer["meta_info"]["output_top_logprobs"]]
            for answer in (fast, base)
        ]
        for ours, theirs in zip(*tops, strict=True):
            assert ours.keys() == theirs.keys()
            assert list(ours.values()) == pytest.approx([theirs[t] for t in ours], abs=1e-4)


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_logprobs_end_with_the_answer(servers, kind):
    """A stop inside an accepted run cuts them as well."""
    prompt = "def fibonacci(n):\n    "
    free = generate(servers("mimo"), prompt, max_new_tokens=16, ignore_eos=True)
    for stop in dict.fromkeys(free.ids[1:12]):
        answers = [
            native(servers(where), prompt, return_logprob=True, sampling={"stop_token_ids": [stop]})
            for where in (kind, "mimo")
        ]
        fast, base = (
            (a["output_ids"], [t for _, t, *_ in a["meta_info"]["output_token_logprobs"]])
            for a in answers
        )
        assert fast == base


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_usage_and_finish_reason(servers, kind):
    def seen(where: str, **fields):
        body = complete(servers(where), **fields).json()
        choices = [(c["text"], c["finish_reason"]) for c in body["choices"]]
        usage = {
            k: body["usage"][k] for k in ("prompt_tokens", "completion_tokens", "total_tokens")
        }
        return choices, usage

    for fields in ({}, {"n": 2}, {"max_tokens": 1}, {"stop": ["e", "a"]}, {"logprobs": 2}):
        assert seen(kind, **fields) == seen("mimo", **fields)


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_a_stream_ends_with_the_usage(servers, kind):
    fields = {"stream": True, "stream_options": {"include_usage": True}}

    def streamed(where: str):
        lines = complete(servers(where), **fields).text.split("\n")
        events = [
            json.loads(x[6:]) for x in lines if x.startswith("data: ") and x != "data: [DONE]"
        ]
        text = "".join(c["text"] or "" for e in events for c in e["choices"])
        return text, events[-1]["usage"]["completion_tokens"], events[-1]["usage"]["prompt_tokens"]

    assert streamed(kind) == streamed("mimo")


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_text_of_several_bytes_is_never_torn(servers, kind):
    """Chinese and emoji come as several tokens a character; runs end anywhere in one."""
    for prompt in ("中国的首都是", "🙂🙃🙂🙃", "é à ü ñ é à"):
        base = generate(servers("mimo"), prompt, max_new_tokens=40, ignore_eos=True)
        fast = generate(servers(kind), prompt, stream=True, max_new_tokens=40, ignore_eos=True)
        assert fast.visible == base.visible


@pytest.mark.parametrize("kind", SPECULATIVE)
@pytest.mark.parametrize("room", [3, 5, 8])
def test_up_to_the_last_token_that_fits(servers, kind, room):
    """The drafts' own places come off the context; what does not fit then is refused.

    SGLang alone takes prompts up to five tokens short of the context.
    """
    fits = CONTEXT - RESERVED[kind]
    prompt = [1000 + i % 2000 for i in range(fits - room)]
    base = generate(servers("mimo"), prompt, max_new_tokens=room, ignore_eos=True)
    fast = generate(servers(kind), prompt, max_new_tokens=room, ignore_eos=True)
    assert fast.visible == base.visible
    assert fast.finish_reason == {"type": "length", "length": room}
    with pytest.raises(httpx.HTTPStatusError, match="400"):
        generate(servers(kind), prompt, max_new_tokens=room + 1)


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_hidden_states_are_those_of_the_tokens(servers, kind):
    """The row that each token was read from, of the right request."""
    prompts = [f"{i} apples and {i + 3} pears" for i in range(8)]
    asked = {"temperature": 0, "max_new_tokens": 14, "ignore_eos": True}
    body = {"text": prompts, "sampling_params": asked, "return_hidden_states": True}

    def rows(where: str) -> list[torch.Tensor]:
        answers = httpx.post(f"{servers(where)}/generate", json=body, timeout=TIMEOUT).json()
        states = [answer["meta_info"]["hidden_states"] for answer in answers]
        # The first entry holds all rows of the prefill, as many as were not in the cache.
        return [torch.tensor([first[-1], *others]) for first, *others in states]

    base, fast = rows("mimo"), rows(kind)
    assert {len(request) for request in base} == {14}
    for one, other in zip(fast, base, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
