"""What a client reads from SGLang's /generate: tokens, counters, and what it sends there.

Alone: pytest tests/benchmarks/test_native.py
"""

import asyncio

import pytest
import streaming_server as pieces

from fastmtp_benchmarks.endpoint import Sampling
from fastmtp_benchmarks.native import NativeEndpoint
from fastmtp_sglang.errors import FastMTPError


def test_tokens_are_counted_whatever_a_chunk_holds(server, ask):
    ids = list(range(100, 136))
    ends = [1, 3, 6, 10, 15, 21, 28, 36]  # chunks of 1 to 8 tokens
    server.answers = lambda body: [
        *(pieces.native(end, ids[:end]) for end in ends[:-1]),
        pieces.native(36, ids, "all", "length", spec_verify_ct=9, spec_num_correct_drafts=26),
        pieces.DONE,
    ]
    answer = ask(server)
    assert answer.error is None
    assert (answer.output_tokens, answer.token_ids, answer.prompt_tokens) == (36, ids, 3)
    assert answer.finish_reason == "length"
    assert [tokens for _, tokens in answer.arrivals] == ends
    assert (answer.speculation.verifications, answer.speculation.accepted_drafts) == (9, 26)


def test_chunks_of_a_server_with_disjoint_output(server, ask):
    server.answers = lambda body: [
        pieces.native(1, [7], "a"),
        pieces.native(4, [8, 9, 10], "bcd"),
        pieces.native(5, [11], "e", "stop"),
        pieces.DONE,
    ]
    answer = ask(server)
    assert (answer.token_ids, answer.text) == ([7, 8, 9, 10, 11], "abcde")
    assert [tokens for _, tokens in answer.arrivals] == [1, 4, 5]


def test_ids_beyond_the_count_of_a_chunk_belong_to_the_next(server, ask):
    """SGLang's chunks share a list that goes on growing while they wait to be sent."""
    server.answers = lambda body: [
        pieces.native(1, [7, 8, 9]),
        pieces.native(3, [7, 8, 9], "", "stop"),
        pieces.DONE,
    ]
    answer = ask(server)
    assert answer.token_ids == [7, 8, 9]
    assert [tokens for _, tokens in answer.arrivals] == [1, 3]


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"spec_verify_ct": None, "spec_num_correct_drafts": None},
        {"spec_verify_ct": 0, "spec_num_correct_drafts": 0},
        {"spec_accept_length": 3.0},
    ],
)
def test_missing_counters_are_not_reported(server, meta, ask):
    server.answers = lambda body: pieces.native_answer([1, 2, 3], **meta)
    assert ask(server).speculation is None


def test_nothing_accepted_is_reported(server, ask):
    meta = {"spec_verify_ct": 4, "spec_num_correct_drafts": 0, "spec_correct_drafts_histogram": [4]}
    server.answers = lambda body: pieces.native_answer([1, 2, 3, 4, 5], **meta)
    told = ask(server).speculation
    assert (told.verifications, told.accepted_drafts, told.histogram) == (4, 0, [4])


def test_sampling_parameters(server, ask):
    ask(server, Sampling(max_new_tokens=9))
    ask(server, Sampling(temperature=0.5, top_p=0.9, top_k=7, output_length=11))
    assert [request["sampling_params"] for request in server.requests] == [
        {"temperature": 0.0, "max_new_tokens": 9},
        {
            "temperature": 0.5,
            "max_new_tokens": 11,
            "top_p": 0.9,
            "top_k": 7,
            "ignore_eos": True,
        },
    ]
    assert server.requests[0]["input_ids"] == [1, 2, 3]


def test_chunks_without_counts_are_counted_by_their_ids(server, ask):
    server.answers = lambda body: [
        pieces.sse({"text": "a", "output_ids": [7, 8]}),
        pieces.native(3, [7, 8, 9], "ab", "stop"),
        pieces.DONE,
    ]
    answer = ask(server)
    assert [tokens for _, tokens in answer.arrivals] == [2, 3]
    assert (answer.token_ids, answer.text) == ([7, 8, 9], "ab")


@pytest.mark.parametrize(("status", "attempts"), [(None, 2), (503, 2), (400, 1)])
def test_what_the_server_gave_up_itself_is_asked_again(server, ask, status, attempts):
    """Without a status it is taken for the server's own fault."""
    reason = {"type": "abort", "message": "no memory", "status_code": status}
    server.first = [[pieces.native(0, [], finish_reason=reason)]] * 2
    answer = ask(server, retries=1)
    assert (answer.error, answer.attempts) == ("aborted: no memory", attempts)


def test_another_kind_of_server_is_refused(server):
    del server.pages["/server_info"]

    async def describe():
        async with NativeEndpoint(server.url, flag="--endpoint a") as endpoint:
            await endpoint.describe()

    with pytest.raises(FastMTPError, match=r"--endpoint a http.*has no /server_info.*--api openai"):
        asyncio.run(describe())
