"""What the clients of a server share: events, what a status and a reply mean, pauses.

Alone: pytest tests/servers/test_http_client.py
"""

import asyncio
import email.utils
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.servers import http_client

URL = "http://127.0.0.1:1"


def reply(status: int, text: str = "", **headers: str) -> httpx.Response:
    request = httpx.Request("GET", f"{URL}/info")
    return httpx.Response(status, text=text, headers=headers, request=request)


class Listener:
    """A server on loopback that answers "direct", with TLS if it is given a certificate."""

    def __init__(self, certificate: Path | None = None, answer: bytes = b"direct") -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def listen():
    made = []

    def make(*arguments, **options) -> Listener:
        made.append(Listener(*arguments, **options))
        return made[-1]

    yield make
    for listener in made:
        listener.close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """No proxies and certificates but those that a test names."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def get(url: str) -> str:
    """What both clients get from a URL."""

    async def asynchronous() -> str:
        async with http_client.AsyncSession(None, 5, [url]) as session:
            return (await session._client.get(url)).text

    with http_client.client(None, 5, [url]) as client:
        text = client.get(url).text
    assert asyncio.run(asynchronous()) == text
    return text


def test_a_private_authority_is_named_by_the_environment(listen, environment, tmp_path):
    certificate = tmp_path / "both.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", tmp_path / "key.pem", "-out", tmp_path / "authority.pem"),
        ],
        check=True,
        capture_output=True,
    )
    parts = (tmp_path / name for name in ("key.pem", "authority.pem"))
    certificate.write_bytes(b"".join(part.read_bytes() for part in parts))
    url = f"https://localhost:{listen(certificate).port}"
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        get(url)
    environment.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    assert get(url) == "direct"


def test_proxies_are_those_of_the_environment_and_loopback_has_none(listen, environment):
    proxy, server = listen(answer=b"by the proxy"), listen()
    for name in ("http_proxy", "ALL_PROXY"):
        environment.setenv(name, f"http://127.0.0.1:{proxy.port}")
    assert get("http://far.example/") == "by the proxy"
    for host in ("127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0"):
        if host == "127.0.0.2":  # nobody listens there, and the proxy is not asked
            with pytest.raises(httpx.ConnectError):
                get(f"http://{host}:{server.port}")
        else:
            assert get(f"http://{host}:{server.port}") == "direct"
    both = [f"http://127.0.0.1:{server.port}", "http://far.example/"]
    with http_client.client(None, 5, both) as client:
        assert [client.get(url).text for url in both] == ["direct", "by the proxy"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("SSL_CERT_FILE", "/nowhere.pem", "SSL_CERT_FILE or SSL_CERT_DIR: holds no certificates"),
        ("https_proxy", "socks5://127.0.0.1:1", "HTTPS_PROXY or ALL_PROXY: cannot be used"),
        ("ALL_PROXY", "nonsense://127.0.0.1:1", "HTTPS_PROXY or ALL_PROXY: cannot be used"),
    ],
)
def test_what_the_environment_says_wrongly_is_named(environment, name, value, message):
    environment.setenv(name, value)
    with pytest.raises(FastMTPError, match=message):
        http_client.client(None, 5, ["https://far.example"])
    if "proxy" in name.lower():  # this machine needs none
        http_client.client(None, 5, [URL]).close()


@pytest.mark.parametrize("url", ["http://[::1", "http://host:99999x"])
def test_what_is_no_url(url):
    with pytest.raises(FastMTPError, match="is no URL"):
        http_client.client(None, 5, [url])


def test_how_long_a_server_asks_to_wait():
    assert http_client.retry_after(reply(429)) is None
    assert http_client.retry_after(reply(429, **{"Retry-After": "7"})) == 7
    assert http_client.retry_after(reply(429, **{"Retry-After": "soon"})) is None
    for seconds, expected in ((60, 60), (-60, 0)):
        date = email.utils.formatdate(time.time() + seconds, usegmt=True)
        wait = http_client.retry_after(reply(429, **{"Retry-After": date}))
        assert abs(wait - expected) < 5


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
