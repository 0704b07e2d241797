"""What a client reads from SGLang's /generate: tokens, times, counters, and how it fails.

Alone: pytest tests/benchmarks/test_endpoint.py
"""

import asyncio
import time

import pytest
import streaming_server as pieces

from fastmtp_benchmarks.connect import connect
from fastmtp_benchmarks.endpoint import Sampling
from fastmtp_benchmarks.native import NativeEndpoint
from fastmtp_sglang.errors import FastMTPError

HELLO = [{"role": "user", "content": "hello"}]


def ask(server, sampling: Sampling | None = None, **options):
    async def once():
        async with NativeEndpoint(server.url, **({"pause": 0.01} | options)) as endpoint:
            endpoint.encode = lambda messages: [1, 2, 3]
            return await endpoint.answer(HELLO, sampling or Sampling())

    return asyncio.run(once())


def test_tokens_are_counted_whatever_a_chunk_holds(server):
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


def test_chunks_of_a_server_with_disjoint_output(server):
    server.answers = lambda body: [
        pieces.native(1, [7], "a"),
        pieces.native(4, [8, 9, 10], "bcd"),
        pieces.native(5, [11], "e", "stop"),
        pieces.DONE,
    ]
    answer = ask(server)
    assert (answer.token_ids, answer.text) == ([7, 8, 9, 10, 11], "abcde")
    assert [tokens for _, tokens in answer.arrivals] == [1, 4, 5]


def test_ids_beyond_the_count_of_a_chunk_belong_to_the_next(server):
    """SGLang's chunks share a list that goes on growing while they wait to be sent."""
    server.answers = lambda body: [
        pieces.native(1, [7, 8, 9]),
        pieces.native(3, [7, 8, 9], "", "stop"),
        pieces.DONE,
    ]
    answer = ask(server)
    assert answer.token_ids == [7, 8, 9]
    assert [tokens for _, tokens in answer.arrivals] == [1, 3]


def test_times_are_of_arrival_and_end_with_the_last_tokens(server):
    server.answers = lambda body: [
        0.2, pieces.native(1, [7]), 0.1, pieces.native(3, [7, 8, 9], "", "stop"), 0.5, pieces.DONE,
    ]  # fmt: skip
    began = time.perf_counter()
    answer = ask(server)
    whole = time.perf_counter() - began
    (first, _), (last, _) = answer.arrivals
    assert first >= 0.2
    assert last >= 0.3
    assert last < whole - 0.4  # the end of the stream comes half a second later


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"spec_verify_ct": None, "spec_num_correct_drafts": None},
        {"spec_verify_ct": 0, "spec_num_correct_drafts": 0},
        {"spec_accept_length": 3.0},
    ],
)
def test_missing_counters_are_not_reported(server, meta):
    server.answers = lambda body: pieces.native_answer([1, 2, 3], **meta)
    assert ask(server).speculation is None


def test_drafts_behind_the_end_are_not_counted(server):
    """Six tokens of a server that counts two runs of four, the second cut at two."""
    meta = {"spec_verify_ct": 2, "spec_num_correct_drafts": 6}
    server.answers = lambda body: pieces.native_answer([1, 2, 3, 4, 5, 6], **meta)
    told = ask(server).speculation
    assert (told.verifications, told.accepted_drafts) == (2, 3)


def test_nothing_accepted_is_reported(server):
    meta = {"spec_verify_ct": 4, "spec_num_correct_drafts": 0, "spec_correct_drafts_histogram": [4]}
    server.answers = lambda body: pieces.native_answer([1, 2, 3, 4, 5], **meta)
    told = ask(server).speculation
    assert (told.verifications, told.accepted_drafts, told.histogram) == (4, 0, [4])


def test_sampling_parameters(server):
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


def test_what_may_pass_is_tried_again_and_timed_anew(server):
    server.first = [
        (503, {"error": "busy"}),
        [pieces.native(1, [5]), pieces.sse({"error": {"message": "boom"}})],
        [0.5, pieces.native(1, [5]), None],
    ]
    began = time.perf_counter()
    answer = ask(server, retries=3)
    assert (answer.error, answer.attempts, answer.token_ids) == (None, 4, [5, 6, 7])
    whole = time.perf_counter() - began
    assert answer.arrivals[-1][0] < whole - 0.5
    # What failed is kept apart: half a second here, and the pauses.
    assert 0.5 + 0.01 + 0.02 + 0.04 <= answer.lost_seconds < whole
    assert ask(server).lost_seconds == 0


@pytest.mark.parametrize(
    ("reply", "attempts", "reason"),
    [
        ((400, {"error": "the prompt is too long"}), 1, "HTTP 400.*too long"),
        ((500, {"error": "oops"}), 3, "HTTP 500.*oops"),
        (["error"], 3, "error in the stream: .*boom"),
        (["cut"], 3, "RemoteProtocolError|ReadError"),
        (["unfinished"], 3, "ended before the answer did"),
        (["abort"], 1, "aborted: too long"),
        (["garbage"], 1, "not JSON"),
    ],
)
def test_failures_are_named(server, reply, attempts, reason):
    streams = {
        "error": [pieces.sse({"error": {"message": "boom"}})],
        "cut": [pieces.native(1, [5]), None],
        "unfinished": [pieces.native(1, [5]), pieces.DONE],
        "abort": [
            pieces.native(
                0, [], finish_reason={"type": "abort", "message": "too long", "status_code": 400}
            )
        ],
        "garbage": [pieces.sse("<html>")],
    }
    server.first = [streams[reply[0]] if isinstance(reply, list) else reply] * 3
    answer = ask(server, retries=2)
    assert answer.error is not None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(answer.error)
    assert (answer.attempts, len(server.requests)) == (attempts, attempts)
    assert answer.output_tokens is None
    assert answer.prompt_digest


def test_an_answer_that_takes_too_long_is_not_asked_for_again(server):
    server.answers = lambda body: [pieces.native(1, [5]), 2.0, pieces.DONE]
    began = time.monotonic()
    answer = ask(server, timeout=0.3, retries=5)
    assert answer.error == "no end after 0.3 s"
    assert time.monotonic() - began < 1.5
    assert len(server.requests) == 1


def test_keep_alive_comments_do_not_prolong_the_time(server):
    server.answers = lambda body: [b": ping\n\n", 0.1] * 20
    assert ask(server, timeout=0.4).error == "no end after 0.4 s"


def test_the_key_goes_with_every_request(server):
    server.key = "k"
    assert ask(server, api_key="k").error is None
    with pytest.raises(FastMTPError, match=r"--api-key: .* refuses it"):
        ask(server, api_key="wrong")
    assert server.keys == {"Bearer k", "Bearer wrong"}


def test_a_path_that_is_not_there_stops_everything(server):
    server.first = [(404, {"detail": "Not Found"})]
    with pytest.raises(FastMTPError, match="has no /generate"):
        ask(server)


def test_a_proxy_of_the_environment_is_not_used(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert ask(server).error is None


class Tokenizer:
    chat_template = "x"

    def apply_chat_template(self, messages, **_):
        return [len(message["content"]) for message in messages]


def connected(url, **options):
    async def once():
        endpoint, told = await connect(url, tokenizer=Tokenizer(), **options)
        async with endpoint:
            flushed = await endpoint.flush()
            return endpoint, told, flushed, await endpoint.answer(HELLO, Sampling())

    return asyncio.run(once())


def test_sglang_is_recognized_and_its_secrets_stay_with_it(server):
    endpoint, told, flushed, answer = connected(server.url)
    assert endpoint.kind == "sglang"
    assert told == {"api": "sglang", "version": "0.5.23", "speculative_num_steps": 3}
    assert flushed
    assert answer.token_ids == [5, 6, 7]
    assert server.requests[0]["input_ids"] == [5]  # what the tokenizer made of "hello"
    assert server.paths == ["/flush_cache", "/generate"]


def test_what_answers_pages_for_people_is_refused(server):
    """A web application gives its first page for every path."""
    server.pages |= dict.fromkeys(("/model_info", "/v1/models"), "<!DOCTYPE html>")
    with pytest.raises(FastMTPError, match=r"--endpoint .*answers .*DOCTYPE.*not a JSON object"):
        connected(server.url)


@pytest.mark.parametrize("page", ["<!DOCTYPE html>", [1], {"model": "x"}])
def test_a_page_for_people_where_sglang_has_its_model_is_another_api(server, page):
    server.pages["/model_info"] = page
    server.pages["/v1/models"] = {"data": [{"id": "m", "owned_by": "someone"}]}

    async def once():
        endpoint, told = await connect(server.url)
        await endpoint.close()
        return told

    assert asyncio.run(once()) == {"api": "openai", "model_path": "m", "server": "someone"}
    for data in ({}, [], [{}], [{"id": 5}], ["m"], "m"):
        server.pages["/v1/models"] = {"data": data}
        with pytest.raises(FastMTPError, match="/v1/models names no model"):
            asyncio.run(once())


def test_a_server_that_says_how_long_to_wait_is_waited_for(server):
    server.first = [(429, {"error": "full"}, {"Retry-After": "1"})]
    began = time.monotonic()
    answer = ask(server, pause=0.0)
    assert (answer.error, answer.attempts) == (None, 2)
    assert time.monotonic() - began >= 1


def test_what_is_no_server_of_that_kind_is_refused(server):
    server.pages = {}
    with pytest.raises(FastMTPError, match=r"--endpoint .*/v1/models names no model"):
        connected(server.url)
    with pytest.raises(FastMTPError, match=r"--endpoint .*has no /model_info.*--api openai"):
        connected(server.url, api="sglang")
    with pytest.raises(FastMTPError, match=r"--endpoint http://127.0.0.1:1: no answer"):
        connected("http://127.0.0.1:1")
