"""Endpoints: retries, dead ones, refusals, and what counts as an answer.

Alone: pytest tests/distill/test_endpoints.py
"""

import asyncio
import time
from contextlib import asynccontextmanager

import pytest

from fastmtp_sglang.distill.endpoints import EndpointPool, RequestFailedError
from fastmtp_sglang.errors import FastMTPError

PROMPT = [1, 4093, 198, 504]
DEAD = "http://127.0.0.1:9"


@asynccontextmanager
async def pool_of(*urls: str, said: list[str] | None = None, key: str | None = None):
    lines = [] if said is None else said
    pool = EndpointPool(urls, api_key=key, retries=3, timeout=10, say=lines.append, pause=0.001)
    async with pool:
        yield pool


def ask(*urls: str, times: int = 1, **options):
    """Send requests to fresh pools' endpoints, all at once; return the answers."""

    async def run():
        async with pool_of(*urls, **options) as pool:
            return await asyncio.gather(*(pool.generate(PROMPT, {}) for _ in range(times)))

    return asyncio.run(run())


def test_stop_token_is_part_of_the_answer(endpoint, target):
    (generation,) = ask(endpoint.url)
    assert generation.ids[-1] == 2
    assert generation.stop_id == 2
    assert generation.finish_reason == "stop"
    assert target.tokenizer.decode(generation.ids[:-1]).startswith("answer to")


def test_stop_token_is_added_where_a_server_leaves_it_out(endpoint):
    (with_it,) = ask(endpoint.url)
    endpoint.omit_eos = True
    (without,) = ask(endpoint.url)
    assert without.ids == with_it.ids


def test_cut_answer_gets_no_stop_token(endpoint):
    endpoint.cut = lambda text: True
    (generation,) = ask(endpoint.url)
    assert generation.finish_reason == "length"
    assert generation.stop_id is None
    assert generation.ids[-1] != 2


@pytest.mark.heavy
@pytest.mark.parametrize(
    "reply",
    [
        (503, {}),
        (429, {}),
        (200, {"meta_info": {"finish_reason": {"type": "abort", "message": "full"}}}),
    ],
)
def test_what_may_pass_is_tried_again(endpoint, reply):
    endpoint.replies = [reply] * 3
    said: list[str] = []
    (generation,) = ask(endpoint.url, said=said)
    assert generation.finish_reason == "stop"
    assert said == []


@pytest.mark.heavy
def test_an_endpoint_that_asks_to_wait_is_waited_for_and_never_left_out(endpoint):
    """More often than it would be tried again, and the whole time."""
    endpoint.replies = [(429, {}, {"Retry-After": "0"})] * 9 + [(503, {}, {"Retry-After": "1"})]
    said: list[str] = []
    began = time.monotonic()
    (generation,) = ask(endpoint.url, said=said)
    assert generation.finish_reason == "stop"
    assert time.monotonic() - began >= 1
    assert said == []


@pytest.mark.heavy
def test_an_endpoint_that_only_says_that_it_is_full_is_not_left_out(endpoint):
    """After four tries a token is asked of it, and it says the same: it lives."""
    endpoint.replies = [(429, {})] * 12
    said: list[str] = []
    (generation,) = ask(endpoint.url, said=said)
    assert generation.finish_reason == "stop"
    assert said == []


@pytest.mark.heavy
def test_while_one_asks_to_wait_another_is_asked(endpoints):
    busy, free = endpoints(), endpoints()
    busy.replies = [(429, {}, {"Retry-After": "600"})] * 8
    said: list[str] = []
    answers = ask(busy.url, free.url, times=8, said=said)
    assert len(answers) == len(free.requests) == 8
    assert said == [f"{busy.url} asks to wait 600 s: HTTP 429: {{}}"]


def test_dead_endpoint_is_left_out_and_the_other_takes_over(endpoint):
    said: list[str] = []
    answers = ask(DEAD, endpoint.url, times=8, said=said)
    assert len(answers) == 8
    assert len(said) == 1
    assert DEAD in said[0]
    assert "1 of 2 left" in said[0]


def test_all_dead_is_an_error_that_says_how_to_go_on(endpoint):
    endpoint.generate = lambda body: (500, {})
    with pytest.raises(FastMTPError, match=r"--endpoint .*none answers.*is kept.*same command"):
        ask(DEAD, endpoint.url)


def test_request_that_the_server_refuses_fails_alone(endpoint):
    endpoint.replies = [(400, {"error": {"message": "longer than the context"}})]

    async def run():
        async with pool_of(endpoint.url) as pool:
            with pytest.raises(RequestFailedError, match=r"400.*longer than the context"):
                await pool.generate(PROMPT, {})
            return await pool.generate(PROMPT, {})

    assert asyncio.run(run()).finish_reason == "stop"


def test_request_that_always_breaks_a_healthy_server_fails_alone(endpoint):
    """500 for one prompt while others are answered: the endpoint stays."""
    usual = endpoint.generate
    endpoint.generate = lambda body: (500, {}) if body["input_ids"] == [7, 7] else usual(body)
    said: list[str] = []

    async def run():
        async with pool_of(endpoint.url, said=said) as pool:
            with pytest.raises(RequestFailedError, match="4 times HTTP 500"):
                await pool.generate([7, 7], {})
            return await pool.generate(PROMPT, {})

    assert asyncio.run(run()).finish_reason == "stop"
    assert said == []


def test_restarted_server_loses_no_request(endpoints):
    """Gone for longer than the retries last, and back before it is given up."""
    endpoint = endpoints()
    port = int(endpoint.url.rpartition(":")[2])
    endpoint.close()

    async def run():
        async with pool_of(endpoint.url) as pool:
            answers = pool._answers

            async def comes_back(*arguments):
                endpoints(port)
                pool._answers = answers
                return await answers(*arguments)

            pool._answers = comes_back
            return await pool.generate(PROMPT, {})

    assert asyncio.run(run()).finish_reason == "stop"


def test_key_is_sent_with_every_request(endpoint):
    endpoint.key = "secret"

    async def run():
        async with pool_of(endpoint.url, key="secret") as pool:
            await pool.describe()
            return await pool.generate(PROMPT, {})

    assert asyncio.run(run()).ids
    with pytest.raises(FastMTPError, match=r"--api-key: .*401"):
        ask(endpoint.url)


def test_other_services_are_refused_at_once(endpoint):
    endpoint.replies = [(404, {})]
    with pytest.raises(FastMTPError, match="no SGLang server"):
        ask(endpoint.url)
    endpoint.replies = [(200, {"choices": []})]
    with pytest.raises(FastMTPError, match="no output_ids"):
        ask(endpoint.url)


def test_server_that_changes_the_prompt_is_refused(endpoint):
    endpoint.extra_prompt_tokens = 1
    with pytest.raises(FastMTPError, match="read 5 prompt tokens where 4 were sent"):
        ask(endpoint.url)
