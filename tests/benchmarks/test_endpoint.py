"""What a client reads from SGLang's /generate: tokens, times, counters, and how it fails.

Alone: pytest tests/benchmarks/test_endpoint.py
"""

import time

import pytest
import streaming_server as pieces

from fastmtp_sglang.errors import FastMTPError


@pytest.mark.heavy
def test_times_are_of_arrival_and_end_with_the_last_tokens(server, ask):
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


def test_drafts_behind_the_end_are_not_counted(server, ask):
    """Six tokens of a server that counts two runs of four, the second cut at two."""
    meta = {"spec_verify_ct": 2, "spec_num_correct_drafts": 6}
    server.answers = lambda body: pieces.native_answer([1, 2, 3, 4, 5, 6], **meta)
    told = ask(server).speculation
    assert (told.verifications, told.accepted_drafts) == (2, 3)


@pytest.mark.heavy
def test_what_may_pass_is_tried_again_and_timed_anew(server, ask):
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
def test_failures_are_named(server, reply, attempts, reason, ask):
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


def test_an_answer_that_takes_too_long_is_not_asked_for_again(server, ask):
    server.answers = lambda body: [pieces.native(1, [5]), 2.0, pieces.DONE]
    began = time.monotonic()
    answer = ask(server, timeout=0.3, retries=5)
    assert answer.error == "no end after 0.3 s"
    assert time.monotonic() - began < 1.5
    assert len(server.requests) == 1


def test_keep_alive_comments_do_not_prolong_the_time(server, ask):
    server.answers = lambda body: [b": ping\n\n", 0.1] * 20
    assert ask(server, timeout=0.4).error == "no end after 0.4 s"


def test_the_key_goes_with_every_request(server, ask):
    server.key = "k"
    assert ask(server, api_key="k").error is None
    with pytest.raises(FastMTPError, match=r"--api-key: .* refuses it"):
        ask(server, api_key="wrong")
    assert server.keys == {"Bearer k", "Bearer wrong"}


def test_a_path_that_is_not_there_stops_everything(server, ask):
    server.first = [(404, {"detail": "Not Found"})]
    with pytest.raises(FastMTPError, match="has no /generate"):
        ask(server)


def test_a_proxy_of_the_environment_is_not_used(server, monkeypatch, ask):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert ask(server).error is None


@pytest.mark.heavy
def test_a_server_that_says_how_long_to_wait_is_waited_for(server, ask):
    server.first = [(429, {"error": "full"}, {"Retry-After": "1"})]
    began = time.monotonic()
    answer = ask(server, pause=0.0)
    assert (answer.error, answer.attempts) == (None, 2)
    assert time.monotonic() - began >= 1
