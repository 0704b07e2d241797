"""Penalized answers with FASTMTP are those without speculation: every token id, over HTTP.

The reference is SGLang with --disable-overlap-schedule: with overlapped scheduling its penalties
lag one token behind and depend on the batch. It keeps its penalizers in a set of classes, so that
one server subtracts before it scales and the next one scales first; the tests ask for one of the
two at a time, and tests/serving/verification/test_penalties.py has both.
Run alone: pytest tests/served/test_penalties.py (starts three tiny servers).
"""

import itertools
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny_models as models
from client import Answer, acceptance_length, assert_equal, generate
from features import PENALTIES
from prompts import requests

SPECULATIVE = ("mimo-native", "mimo-head-synchronous")


def penalized() -> list[tuple[list[int] | str, dict]]:
    """Prompts that lead into text that repeats itself, and some text, each with a penalty."""
    loops = [[*range(3000, 3000 + i % 7), token] for i, token in enumerate([*models.LOOPS] * 4)]
    prompts = [*loops, *(prompt for prompt, _ in requests()[:20])]
    return [
        (prompt, {"max_new_tokens": 16 + i % 20, "ignore_eos": True, **penalty})
        for i, (prompt, penalty) in enumerate(
            zip(prompts, itertools.cycle(PENALTIES), strict=False)
        )
    ]


def ask(url: str, cases: list[tuple], concurrency: int, **options) -> list[Answer]:
    with ThreadPoolExecutor(concurrency) as pool:
        return list(pool.map(lambda case: generate(url, case[0], **case[1], **options), cases))


@pytest.fixture(scope="module")
def baseline(servers) -> list[Answer]:
    return ask(servers("mimo-synchronous"), penalized(), 1)


@pytest.mark.parametrize(
    "penalty",
    [{"repetition_penalty": 1.2}, {"presence_penalty": 0.5, "frequency_penalty": 0.1}],
    ids=["scaled", "subtracted"],
)
@pytest.mark.parametrize("kind", SPECULATIVE)
def test_logprobs_of_penalized_tokens(servers, kind, penalty):
    """They are taken after the penalties, as without speculation."""
    import httpx
    from client import TIMEOUT

    body = {
        "input_ids": [models.LOOPS[0]],
        "sampling_params": {
            "temperature": 0,
            "max_new_tokens": 16,
            "ignore_eos": True,
            **penalty,
        },
        "return_logprob": True,
    }
    answers = [
        httpx.post(f"{servers(where)}/generate", json=body, timeout=TIMEOUT).json()["meta_info"]
        for where in ("mimo-synchronous", kind)
    ]
    base, fast = ([(t, p) for p, t, *_ in a["output_token_logprobs"]] for a in answers)
    assert [token for token, _ in fast] == [token for token, _ in base]
    assert [p for _, p in fast] == pytest.approx([p for _, p in base], abs=1e-4)


def test_the_reference_does_not_depend_on_the_batch_and_is_penalized(servers, baseline):
    url = servers("mimo-synchronous")
    assert_equal(ask(url, penalized(), 16), baseline)
    bare = [
        (prompt, {k: options[k] for k in ("max_new_tokens", "ignore_eos")})
        for prompt, options in penalized()
    ]
    changed = [a.ids != b.ids for a, b in zip(ask(url, bare, 16), baseline, strict=True)]
    assert sum(changed) > 0.5 * len(changed)


@pytest.mark.parametrize("kind", SPECULATIVE)
@pytest.mark.parametrize(
    ("concurrency", "stream"), [(1, False), (16, False), (16, True)], ids=["1", "16", "16-stream"]
)
def test_penalties(servers, baseline, kind, concurrency, stream):
    chosen = slice(None, None, 3 if concurrency == 1 else 1)
    fast = ask(servers(kind), penalized()[chosen], concurrency, stream=stream)
    assert_equal(fast, baseline[chosen])
    assert acceptance_length(fast) > 1.5


@pytest.mark.parametrize("kind", SPECULATIVE)
def test_min_new_tokens_at_every_position_of_an_accepted_run(servers, kind):
    """The stop token comes early by itself and is barred until the minimum, then allowed."""
    prompt = [models.LOOPS[0]]
    free = generate(servers("mimo-synchronous"), prompt, max_new_tokens=24, ignore_eos=True)
    stops = list(dict.fromkeys(free.ids))[:5]
    cases = [
        (prompt, {"max_new_tokens": 24, "stop_token_ids": [stop], "min_new_tokens": minimum})
        for stop in stops
        for minimum in range(1, 17, 2)
    ]
    base = ask(servers("mimo-synchronous"), cases, 8)
    fast = ask(servers(kind), cases, 8)
    assert_equal(fast, base)
    for answer, (_, options) in zip(fast, cases, strict=True):
        assert len(answer.ids) >= options["min_new_tokens"]
    assert any(answer.ids != free.ids[: len(answer.ids)] for answer in fast)
