"""Chat completions of any server: what is known of tokens when chunks do not say.

Alone: pytest tests/benchmarks/test_openai_api.py
"""

import asyncio

import pytest
import streaming_server as pieces

from fastmtp_benchmarks.endpoint import Sampling
from fastmtp_benchmarks.openai_api import OpenAIEndpoint, vllm_counters

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def ask(server):
    """Ask a server that calls itself `owner` and streams `answered`."""

    def once(answered, owner="somebody", sampling=None):
        server.pages = {"/v1/models": {"data": [{"id": "m", "owned_by": owner}]}}
        server.answers = lambda body: answered

        async def answer():
            async with OpenAIEndpoint(server.url, pause=0.01) as endpoint:
                await endpoint.describe()
                return await endpoint.answer(HELLO, sampling or Sampling())

        return asyncio.run(answer())

    return once


@pytest.fixture
def chunk():
    def make(usage=None, finish=None, choice=None, **delta):
        choices = [{"index": 0, "delta": delta, "finish_reason": finish, **(choice or {})}]
        tokens = None if usage is None else {"prompt_tokens": 4, "completion_tokens": usage}
        return pieces.sse({"choices": choices, "usage": tokens})

    return make


@pytest.fixture
def usage():
    return lambda tokens, **more: pieces.sse(
        {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": tokens}, **more}
    )


def test_usage_only_at_the_end(ask, chunk, usage):
    """Three chunks of text are 20 tokens; how many came with which is not known."""
    answer = ask(
        [
            chunk(role="assistant", content=""),
            0.15,
            *(chunk(content=text) for text in ("a", "b c d", " e")),
            chunk(finish="stop"),
            usage(20),
            pieces.DONE,
        ]
    )
    assert (answer.output_tokens, answer.prompt_tokens, answer.text) == (20, 4, "ab c d e")
    assert [tokens for _, tokens in answer.arrivals] == [None] * 3
    # The chunk that holds the role alone is no token.
    assert answer.arrivals[0][0] >= 0.15
    assert answer.token_ids is None
    assert answer.speculation is None


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_output(ask, chunk, usage, field):
    answer = ask(
        [
            chunk(role="assistant", content=""),
            *(chunk(2 * n, **{field: "hm", "content": None}) for n in (1, 2)),
            chunk(7, content="42"),
            chunk(finish="stop"),
            usage(7),
            pieces.DONE,
        ],
        "sglang",
    )
    assert (answer.reasoning, answer.text) == ("hmhm", "42")
    assert [tokens for _, tokens in answer.arrivals] == [2, 4, 7]
    assert answer.output_tokens == 7


def test_an_answer_of_reasoning_alone(ask, chunk, usage):
    answer = ask([chunk(reasoning_content="hm"), chunk(finish="length"), usage(9), pieces.DONE])
    assert (answer.error, answer.output_tokens, answer.text) == (None, 9, "")
    assert len(answer.arrivals) == 1


def test_token_ids_of_vllm(ask, chunk, usage):
    answer = ask(
        [
            chunk(content="", role="assistant"),
            chunk(content="a", choice={"token_ids": [1]}),
            chunk(content="bc", choice={"token_ids": [2, 3, 4]}),
            chunk(content="", finish="stop", choice={"token_ids": [9]}),
            usage(5),
            pieces.DONE,
        ],
        "vllm",
    )
    assert answer.token_ids == [1, 2, 3, 4, 9]
    assert [tokens for _, tokens in answer.arrivals] == [1, 4, 5]


def test_the_extension_of_sglang(ask, chunk, usage):
    details = {
        "spec_verify_ct": 2,
        "spec_num_correct_drafts": 3,
        "spec_correct_drafts_histogram": [0, 1, 1],
    }
    answer = ask(
        [
            chunk(1, content="a"),
            chunk(6, content="b"),
            chunk(finish="stop"),
            pieces.sse(
                {
                    "choices": [],
                    "sglext": {"spec_tokens_details": details, "output_ids": [[1, 2, 3, 4, 5, 6]]},
                }
            ),
            usage(6),
            pieces.DONE,
        ],
        "sglang",
    )
    assert answer.token_ids == [1, 2, 3, 4, 5, 6]
    assert [tokens for _, tokens in answer.arrivals] == [1, 6]
    assert (answer.speculation.verifications, answer.speculation.accepted_drafts) == (2, 3)


@pytest.mark.parametrize(
    ("reason", "attempts"), [("abort", 3), ("error", 3), ("content_filter", 1)]
)
def test_an_answer_that_was_given_up_is_none(ask, chunk, usage, reason, attempts):
    """vllm#57082: it ends like any other, with usage and all."""
    answer = ask([chunk(1, content="a"), chunk(finish=reason), usage(1), pieces.DONE], "vllm")
    assert answer.error == f"ended with finish_reason {reason}"
    assert (answer.attempts, answer.output_tokens) == (attempts, None)


def test_without_usage_tokens_cannot_be_counted(ask, chunk):
    answer = ask([chunk(content="a"), chunk(finish="stop"), pieces.DONE])
    assert "neither usage nor token ids" in answer.error


def test_extra_fields_go_only_to_servers_that_know_them(ask, server, chunk, usage):
    whole = [chunk(content="a"), chunk(finish="stop"), usage(1), pieces.DONE]
    for owner in ("somebody", "vllm", "sglang"):
        ask(whole, owner, Sampling(max_new_tokens=5))
    ask(whole, "vllm", Sampling(temperature=0.5, top_k=3, output_length=8))
    plain, vllm, sglang, fixed = server.requests
    common = {"model": "m", "messages": HELLO, "temperature": 0.0, "stream": True, "max_tokens": 5}
    assert plain == common | {"stream_options": {"include_usage": True}}
    streamed = {"include_usage": True, "continuous_usage_stats": True}
    assert vllm == common | {"stream_options": streamed, "return_token_ids": True}
    assert sglang["return_spec_tokens_details"]
    assert sglang["return_output_ids_in_sglext"]
    assert fixed["ignore_eos"]
    assert (fixed["max_tokens"], fixed["top_k"]) == (8, 3)


@pytest.mark.parametrize(
    ("owner", "more"),
    [
        ("sglang", {"version": "0.5.23", "speculative_num_steps": 3}),
        ("vllm", {"version": "1.2"}),
        ("somebody", {}),
    ],
)
def test_what_a_server_says_of_itself(server, owner, more):
    server.pages["/v1/models"] = {"data": [{"id": "m", "owned_by": owner}]}
    server.pages["/version"] = {"version": "1.2"}

    async def describe():
        async with OpenAIEndpoint(server.url) as endpoint:
            return await endpoint.describe()

    told = {"api": "openai", "model_path": "m", "server": owner}
    assert asyncio.run(describe()) == told | more


METRICS = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 60.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 40.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.76e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 200.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 90.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 70.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 20.0
"""


def test_vllm_counts_for_the_whole_server():
    counters = vllm_counters(METRICS)
    assert (counters.verifications, counters.accepted_drafts) == (100, 90)
    assert counters.histogram == [30, 50, 20]
    assert vllm_counters("vllm:num_requests_running 1.0\n") is None
