"""Nonsense at every door of a server: a 4xx answer, and the next request is answered as before.

The routes and their fields are read from the server's own description of itself. What is odd is
drawn with a fixed seed: types, nesting, lengths, for every field of a request and for every
administrative call, on a server with a draft vocabulary and on one without.

Run alone: pytest tests/served/test_every_route.py (starts two tiny servers).
"""

import gzip
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import chains
import httpx
import pytest
from client import TIMEOUT, flush, generate
from odd import JSON, REQUESTS, encoded, odd_calls, odd_requests

SEED = 20261128
KINDS = ("chains-routed", "mimo-native")
# SGLang's own models of these bodies answer 500 where they fail, and the server goes on.
ANSWERS_500 = ("/v1/chat/completions", "/invocations", "/add_external_corpus")
PROMPT = chains.prompt("en")


class Walk:
    """Sends what is odd, and looks whether the server still answers as it did."""

    def __init__(self, url: str) -> None:
        self.url = url
        # A server that answers 500 closes the connection.
        self.client = httpx.Client(
            timeout=httpx.Timeout(60),
            limits=httpx.Limits(max_keepalive_connections=0),
            trust_env=False,
        )
        self.normal = generate(url, PROMPT, max_new_tokens=8).visible
        self.sent: list[str] = []
        self.codes: dict[int, int] = {}

    def send(self, method: str, path: str, body: Any, *, may_fail: bool = False) -> httpx.Response:
        self.sent.append(f"{method} {path} {str(body)[:300]}")
        try:
            response = self.client.request(
                method, f"{self.url}{path}", content=encoded(body), headers=JSON
            )
        except httpx.TransportError as error:
            pytest.fail(f"{error!r} after {self.sent[-3:]}")
        self.codes[response.status_code] = self.codes.get(response.status_code, 0) + 1
        if path not in ANSWERS_500 and not may_fail:
            assert response.status_code < 500, (self.sent[-1], response.text[:300])
        if len(self.sent) % 10 == 0:
            self.look()
        return response

    def look(self) -> None:
        try:
            assert generate(self.url, PROMPT, max_new_tokens=8).visible == self.normal
        except (AssertionError, httpx.HTTPError) as error:
            pytest.fail(f"{error!r} after {self.sent[-10:]}")


@pytest.fixture(params=KINDS)
def walk(request, servers) -> Iterator[Walk]:
    walk = Walk(servers(request.param))
    yield walk
    walk.look()
    flush(walk.url)
    assert httpx.get(f"{walk.url}/health_generate", timeout=TIMEOUT).status_code == 200


@pytest.mark.parametrize("path", REQUESTS)
def test_every_field_of_a_request(walk, path):
    schemas = walk.client.get(f"{walk.url}/openapi.json").json()
    for body in odd_requests(schemas, path, random.Random(SEED)):
        walk.send("POST", path, body)
    assert walk.codes[200] > 20
    assert walk.codes[400] > 20


def test_every_other_route(walk):
    schemas = walk.client.get(f"{walk.url}/openapi.json").json()
    assert len(schemas["paths"]) > 80
    for method, path, body in odd_calls(schemas, random.Random(SEED)):
        # Handlers of SGLang's that raise answer 500; what counts is that the server lives.
        walk.send(method, path, body, may_fail=True)
    # What the walk may have begun.
    for path in ("/resume_memory_occupation", "/stop_profile", "/continue_generation"):
        walk.client.post(f"{walk.url}{path}", json={})


@pytest.mark.parametrize("mode", ["abort", "in_place", "retract"])
def test_a_pause(walk, mode):
    for path, body in (("/pause_generation", {"mode": mode}), ("/continue_generation", {})):
        assert walk.client.post(f"{walk.url}{path}", json=body).status_code == 200


LIST_NAMES = (["zh", "en"], {"a": 1}, 5, True)


@pytest.mark.parametrize("path", REQUESTS)
def test_a_draft_list_of_the_wrong_type(walk, path):
    for custom in (*({"lang": name} for name in LIST_NAMES), "zh", ["lang"], 5, True):
        body = json.loads(json.dumps(REQUESTS[path]))
        body.get("sampling_params", body)["custom_params"] = custom
        answer = walk.send("POST", path, body)
        assert answer.status_code == 400
        assert "lang" in answer.text or "custom_params" in answer.text
        walk.look()


@pytest.mark.slow  # Writing a trace takes minutes on a busy machine.
def test_profiles(walk, tmp_path):
    """A trace of the CPU, or a refusal."""
    start = {"output_dir": str(tmp_path), "profile_id": "p"}
    for options in ({}, {"activities": ["CPU"]}):
        assert walk.send("POST", "/start_profile", start | options).status_code == 200
        for _ in range(3):
            walk.look()
        assert walk.send("POST", "/stop_profile", None).status_code == 200
        (trace,) = tmp_path.glob("p-*.trace.json.gz")
        assert b"aten::" in gzip.decompress(trace.read_bytes())
        trace.unlink()
    for odd in ({"activities": ["MEM"]}, {"output_dir": "/proc/x/y"}, {"profile_by_stage": True}):
        assert walk.send("POST", "/start_profile", start | odd).status_code == 400
    assert walk.send("POST", "/stop_profile", None).status_code == 400


def test_memory(walk):
    """Released and resumed in order, and not otherwise; answers in between are right too."""
    release, resume = "/release_memory_occupation", "/resume_memory_occupation"
    assert walk.send("POST", resume, {}).status_code == 400
    assert walk.send("POST", release, {"tags": ["kv_cache", "x"]}).status_code == 400
    for tags in ({}, {"tags": ["kv_cache"]}, {"tags": ["weights", "cuda_graph"]}):
        # The step behind the last answer may not have ended yet.
        while (answer := walk.send("POST", release, tags)).status_code != 200:
            assert "no request is running" in answer.text, answer.text
            time.sleep(0.1)
        assert walk.send("POST", release, tags).status_code == 400
        walk.look()
        assert walk.send("POST", resume, tags).status_code == 200
        assert walk.send("POST", resume, tags).status_code == 400
        walk.look()


def test_no_memory_is_released_of_a_busy_server(walk):
    sampling = {"temperature": 0, "max_new_tokens": 800, "ignore_eos": True}
    long = {"input_ids": PROMPT, "sampling_params": sampling, "stream": True}
    with walk.client.stream("POST", f"{walk.url}/generate", json=long) as answer:
        lines = answer.iter_lines()
        next(lines)
        refused = httpx.post(f"{walk.url}/release_memory_occupation", json={}, timeout=TIMEOUT)
        assert refused.status_code == 400
        assert "data: [DONE]" in list(lines)


def test_a_session_that_is_rewritten(walk):
    """The whole history, or what follows a place in it, is replaced: as the tokens alone say."""
    opened = walk.send("POST", "/open_session", {"capacity_of_str_len": 1000}).json()

    def ask(ids: list[int], **where: Any) -> dict:
        sampling = {"temperature": 0, "max_new_tokens": 4}
        session = {"session_params": {"id": opened, **where}} if where else {}
        body = {"input_ids": ids, "sampling_params": sampling, **session}
        answer = walk.send("POST", "/generate", body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    first = ask(PROMPT[:6], replace=False)
    more = ask(PROMPT[10:14], rid=first["meta_info"]["id"], offset=4, replace=True)
    assert more["output_ids"] == ask([*PROMPT[:4], *PROMPT[10:14]])["output_ids"]
    for _ in range(2):
        again = ask(PROMPT[:9], replace=True)
        assert again["output_ids"] == ask(PROMPT[:9])["output_ids"]
    assert walk.send("POST", "/close_session", {"session_id": opened}).status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/generate", {"positional_embed_overrides": {"a": 1}}, "positional_embed_overrides"),
        ("/generate", {"return_logprob": True, "top_logprobs_num": 49153}, "top_logprobs_num"),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 60000}, "top_logprobs"),
        ("/v1/completions", {"logprobs": 60000}, "top_logprobs"),
        ("/v1/completions", {"stop_regex": "("}, "stop_regex"),
        ("/v1/chat/completions", {"stop_regex": ["a", "("]}, "stop_regex"),
    ],
)
def test_the_field_is_named(walk, path, fields, named):
    refused = walk.send("POST", path, REQUESTS[path] | fields)
    assert refused.status_code == 400
    assert named in refused.text


@pytest.mark.parametrize("what", ["start", "stop", "dump"])
def test_no_experts_are_recorded(walk, what):
    refused = walk.send("POST", f"/{what}_expert_distribution_record", None)
    assert refused.status_code == 400
    assert "expert_distribution_recorder_mode" in refused.text
