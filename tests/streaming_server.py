"""A server in a thread that streams what a test tells it to, and makers of the pieces it sends.

`FakeServer.answers` is asked for the pieces of each reply: bytes are sent as they are, a number is
a pause in seconds, and None breaks the connection off. `first` replies are used up before.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

Piece = bytes | float | None


def sse(content: dict | str) -> bytes:
    """One server-sent event, non-ASCII unescaped as servers send it."""
    data = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"data: {data}\n\n".encode()


DONE = sse("[DONE]")


def native(tokens: int, ids: list[int], text: str = "", finish: str | None = None, **meta) -> bytes:
    """One chunk of SGLang's /generate."""
    reason = {"type": finish} if finish else None
    meta = {"completion_tokens": tokens, "prompt_tokens": 3, "finish_reason": reason, **meta}
    return sse({"text": text, "output_ids": ids, "meta_info": meta})


def native_answer(ids: list[int], text: str = "ok", per_chunk: int = 2, **meta) -> list[Piece]:
    """A whole answer in cumulative chunks; counters come with the last one."""
    ends = [*range(per_chunk, len(ids), per_chunk), len(ids)]
    chunks: list[Piece] = [native(end, ids[:end], text) for end in ends[:-1]]
    return [*chunks, native(len(ids), ids, text, "stop", **meta), DONE]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, address: object) -> None:
        """A client that breaks off is no error here."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)


class FakeServer:
    """Serves until `close`; the attributes may be changed at any time."""

    def __init__(self) -> None:
        self.answers: Callable[[dict], Iterable[Piece]] = lambda body: native_answer([5, 6, 7])
        self.first: list[tuple | list[Piece]] = []
        self.key: str | None = None
        # GET path -> JSON or text; what is missing is a 404.
        self.pages: dict[str, object] = {
            "/model_info": {"model_path": "/m", "tokenizer_path": "/m"},
            "/server_info": {"version": "0.5.23", "api_key": "secret", "speculative_num_steps": 3},
        }
        self.requests: list[dict] = []
        self.paths: list[str] = []
        self.keys: set[str | None] = set()
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    fake: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        if self._allowed():
            page = self.fake.pages.get(self.path)
            self._reply(404 if page is None else 200, page or {"detail": "Not Found"})

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        if not self._allowed():
            return
        fake = self.fake
        with fake.lock:
            fake.paths.append(self.path.partition("?")[0])
            if not self.path.endswith(("/generate", "/completions")):
                return self._reply(200, "flushed")
            fake.requests.append(body)
            reply = fake.first.pop(0) if fake.first else None
            fake.in_flight += 1
            fake.most_in_flight = max(fake.most_in_flight, fake.in_flight)
        self.counted = True
        try:
            if isinstance(reply, tuple):
                self._leave()
                return self._reply(*reply)
            self._stream(fake.answers(body) if reply is None else reply)
        finally:
            self._leave()

    def _leave(self) -> None:
        """Not in flight any more: before the last bytes, at which a client may ask again."""
        with self.fake.lock:
            self.fake.in_flight -= self.counted
            self.counted = False

    def _allowed(self) -> bool:
        given = self.headers.get("Authorization")
        self.fake.keys.add(given)
        if self.fake.key is None or given == f"Bearer {self.fake.key}":
            return True
        self._reply(401, {"error": "Unauthorized"})
        return False

    def _stream(self, pieces: Iterable[Piece]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            if piece is None or piece == DONE:
                self._leave()
            if piece is None:
                self.close_connection = True
                return self.connection.close()
            if isinstance(piece, bytes):
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                self.wfile.flush()
            else:
                time.sleep(piece)
        self._leave()
        self.wfile.write(b"0\r\n\r\n")

    def _reply(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def servers():
    """Make fake servers that end with the test."""
    made = []

    def make() -> FakeServer:
        made.append(FakeServer())
        return made[-1]

    yield make
    for fake in made:
        fake.close()


@pytest.fixture
def server(servers) -> FakeServer:
    return servers()
