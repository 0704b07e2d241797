"""What the clients of a server share: events, what a status and a reply mean, pauses.

Alone: pytest tests/servers/test_http_client.py
"""

import asyncio

import httpx
import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.servers import http_client

URL = "http://127.0.0.1:1"


def reply(status: int, text: str = "") -> httpx.Response:
    return httpx.Response(status, text=text, request=httpx.Request("GET", f"{URL}/info"))


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_events_whatever_the_pieces_and_the_comments(end):
    pieces = [
        *(b": keep", b"-alive\n\nda", b"ta: a\r\n\r\nevent: x\ndata: b\n", b"\n"),
        f'data: "\u2028\u0085"\n\ndata: end{end}'.encode(),
    ]

    async def arriving():
        for piece in pieces:
            yield piece

    async def read():
        return [data async for data in http_client.async_events(arriving())]

    expected = ["a", "b", '"\u2028\u0085"', "end"]
    assert list(http_client.events(iter(pieces))) == expected
    assert asyncio.run(read()) == expected


def test_the_lines_of_one_event_are_one():
    assert list(http_client.events(iter([b"data: a\ndata: b\n\n"]))) == ["a\nb"]


def test_what_may_pass_and_what_will_not():
    passing = [status for status in range(400, 600) if http_client.may_pass(status)]
    assert passing == [408, 425, 429, *range(500, 600)]


def test_pauses_double_up_to_half_a_minute():
    for attempt, longest in [(1, 0.5), (2, 1.0), (5, 8.0), (7, 30.0), (60, 30.0)]:
        pauses = [http_client.pause_before(attempt) for _ in range(20)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, rf"--api-key: {URL} refuses it"),
        (403, rf"--api-key: {URL} refuses it"),
        (404, rf"--endpoint {URL}: has no /info .*: look elsewhere"),
        (405, rf"--endpoint {URL}: has no /info .*: look elsewhere"),
    ],
)
def test_what_every_other_request_would_get_too_is_an_error(status, message):
    with pytest.raises(FastMTPError, match=message):
        http_client.refuse_misconfigured(reply(status), URL, "--endpoint", "look elsewhere")


def test_what_concerns_one_request_is_left_to_its_sender():
    for status in (200, 400, 429, 503):
        http_client.refuse_misconfigured(reply(status), URL, "--endpoint", "look elsewhere")


def test_a_reply_is_a_json_object_or_an_error():
    assert http_client.json_object(reply(200, '{"a": 1}'), URL, "--endpoint") == {"a": 1}
    for text in ("<html>", "[1]", ""):
        with pytest.raises(FastMTPError, match=rf"--endpoint {URL}: answers .*not a JSON object"):
            http_client.json_object(reply(200, text), URL, "--endpoint")
