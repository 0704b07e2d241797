"""An SGLang endpoint in a thread that answers with the real tokenizer's ids.

`FakeEndpoint` answers `/generate` with ids made from the request, so that a test can tell which
prompt an answer belongs to, and misbehaves as it is told: `replies` are sent before real answers.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.vocabulary.target import Target, load_target

EOS = 2


@pytest.fixture(scope="session")
def target() -> Target:
    return load_target(str(SMOLLM2.checkpoint()))


def last_words(prompt: str) -> str:
    """What the user said last, without control tokens."""
    return prompt.rpartition("user")[2].partition("<|im_end|>")[0].strip()[:60]


class FakeEndpoint:
    """Serves on a free port until `close`; the attributes are read by every request.

    `answer(text, sampling)` turns the prompt's text into the answer's text; `cut(text)` tells
    whether it is cut by length. `replies` are (status, body) or (status, body, headers), sent
    first. `seconds` is how long an answer takes.
    """

    def __init__(self, target: Target, port: int = 0) -> None:
        self.target = target
        self.answer: Callable[[str, dict], str] = lambda text, _: f"answer to {last_words(text)}"
        self.cut: Callable[[str], bool] = lambda text: False
        self.replies: list[tuple] = []
        self.seconds = 0.0
        self.key: str | None = None
        self.extra_prompt_tokens = 0
        self.omit_eos = False
        self.described = {"enable_deterministic_inference": True}
        self.requests: list[dict] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Half a second, its default, is what each test would wait at its end.
        serve = {"poll_interval": 0.02}
        threading.Thread(target=self._server.serve_forever, kwargs=serve, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def prompts(self) -> Counter[tuple[int, ...]]:
        """How often each prompt was answered."""
        return Counter(tuple(request["input_ids"]) for request in self.requests)

    def generate(self, body: dict) -> tuple:
        with self._lock:
            if self.replies:
                return self.replies.pop(0)
        time.sleep(self.seconds)
        prompt = self.target.tokenizer.decode(body["input_ids"])
        ids = self.target.encode(self.answer(prompt, body["sampling_params"]))
        reason: dict = {"type": "stop", "matched": EOS}
        if self.cut(prompt):
            reason = {"type": "length", "length": len(ids)}
        elif not self.omit_eos:
            ids = [*ids, EOS]
        meta = {
            "finish_reason": reason,
            "prompt_tokens": len(body["input_ids"]) + self.extra_prompt_tokens,
        }
        with self._lock:
            self.requests.append(body)
        return 200, {"text": "", "output_ids": ids, "meta_info": meta}


class _Handler(BaseHTTPRequestHandler):
    fake: FakeEndpoint
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(200, {"context_length": None, **self.fake.described})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            self._reply(200, {"tokens": self.fake.target.encode(body["prompt"])})
        else:
            self._reply(*self.fake.generate(body))

    def _reply(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        if self.fake.key and self.headers.get("Authorization") != f"Bearer {self.fake.key}":
            status, body = 401, {"error": "Unauthorized"}
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):  # the client was killed meanwhile
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoints(target):
    """Make fake endpoints that end with the test."""
    made = []

    def make(port: int = 0) -> FakeEndpoint:
        made.append(FakeEndpoint(target, port))
        return made[-1]

    yield make
    for fake in made:
        fake.close()


@pytest.fixture
def endpoint(endpoints) -> FakeEndpoint:
    return endpoints()


@pytest.fixture
def read_lines() -> Callable[[Path], list[dict]]:
    """Read all finished shards of a directory, or one file."""

    def read(path: Path) -> list[dict]:
        files = sorted(path.glob("shard-*.jsonl")) if path.is_dir() else [path]
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    return read
