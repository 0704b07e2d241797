"""The servers of a run: the target's tokenizer, its context, seeds, and a server of our own.

Alone: pytest tests/distill/test_session.py
"""

from dataclasses import replace

import pytest

from fastmtp_sglang.distill import session
from fastmtp_sglang.distill.session import check_tokenizers, context_length, own_server
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.catalog import SMOLLM2


@pytest.mark.parametrize(
    ("described", "obeys"),
    [
        ({"enable_deterministic_inference": False, "speculative_algorithm": None}, False),
        ({"speculative_algorithm": "EAGLE"}, False),
        ({"speculative_algorithm": "fastmtp"}, True),
    ],
)
def test_a_seed_for_servers_that_obey_it(run, endpoint, prompts, described, obeys):
    endpoint.described = described
    run(endpoint.url, prompts=[prompts({"prompt": "Name a fruit."})])
    assert ("sampling_seed" in endpoint.requests[0]["sampling_params"]) == obeys


def test_other_tokenizer_is_refused(run, endpoint, prompts, monkeypatch):
    class Other:
        def encode(self, text: str) -> list[int]:
            return [1, 2, 3]

    monkeypatch.setattr(endpoint, "target", Other())
    with pytest.raises(FastMTPError, match="its tokenizer is not that of --model"):
        run(endpoint.url, prompts=[prompts({"prompt": "a"})])


class Other:
    """A tokenizer that no target here has."""

    def encode(self, text: str) -> list[int]:
        return [1, 2, 3]


def test_each_endpoint_is_asked_for_its_tokenizer(endpoints, target):
    good, bad = endpoints(), endpoints()
    check_tokenizers([good.url, f"{bad.url}/"], None, target, pytest.fail)
    bad.target = Other()
    with pytest.raises(FastMTPError, match=rf"^--endpoint {bad.url}: its tokenizer is not that"):
        check_tokenizers([good.url, bad.url], None, target, pytest.fail)


def test_who_does_not_answer_is_left_to_the_pool(endpoint, target):
    """Gone, or the key is wrong: its first request tells that in the right words."""
    endpoint.key = "secret"
    check_tokenizers([endpoint.url], "wrong", target, pytest.fail)
    endpoint.target = Other()
    with pytest.raises(FastMTPError, match="its tokenizer is not that"):
        check_tokenizers([endpoint.url], "secret", target, pytest.fail)
    endpoint.close()
    check_tokenizers([endpoint.url], "secret", target, pytest.fail)


def test_an_endpoint_that_does_not_tokenize_is_said_and_used(endpoint, target, monkeypatch):
    def reply(handler):
        handler._reply(404, {"error": "no such path"})

    monkeypatch.setattr("fake_endpoint._Handler.do_POST", reply)
    said = []
    check_tokenizers([endpoint.url], None, target, said.append)
    (line,) = said
    assert line.startswith(f"{endpoint.url} does not tokenize (HTTP 404): whether it serves")
    assert line.endswith("is not checked")


@pytest.mark.parametrize(
    ("of_target", "of_servers", "expected"),
    [
        (8192, [], 8192),
        (8192, [4096, 16384], 4096),
        (2048, [4096], 2048),
        (8192, [None, 4096], 4096),
        (None, [4096, None], 4096),
        (0, [4096], 4096),
        ("8192", [-1, 4096], 4096),
    ],
)
def test_the_shortest_context_that_is_known(target, of_target, of_servers, expected):
    changed = replace(target, config={"max_position_embeddings": of_target})
    described = [{"context_length": length} for length in of_servers]
    assert context_length(described, changed) == expected


def test_a_context_that_nobody_knows_is_refused(target):
    with pytest.raises(FastMTPError, match=r"no max_position_embeddings.*with --context-length"):
        context_length([{}, {"context_length": None}], replace(target, config={}))


@pytest.fixture
def server(monkeypatch):
    """What stands in for `sglang serve`: keeps its arguments; `died` is what its log tells."""

    class Server:
        died: FastMTPError | None = None
        started: list[tuple] = []
        stopped = 0

        def __init__(self, path, flags, *, log_path, on_wait):
            self.started.append((path, flags, log_path))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            type(self).stopped += 1

        def check_alive(self):
            if self.died:
                raise self.died

    monkeypatch.setattr(session, "ServerProcess", Server)
    monkeypatch.setattr(Server, "started", [])
    return Server


def own(model, *flags, concurrency=4, log_path="log", said=None):
    lines = [] if said is None else said
    return own_server(
        str(model), flags, concurrency=concurrency, random_seed=7, log_path=log_path,
        say=lines.append, on_wait=lambda seconds, line: None,
    )  # fmt: skip


def test_our_own_server_does_not_speculate_and_draws_anew(server, tmp_path):
    """Flags given by hand come last and win."""
    said = []
    with own(tmp_path, "--tp-size", "2", log_path=tmp_path / "log", said=said) as started:
        assert isinstance(started, server)
        assert server.stopped == 0
    ((path, flags, log_path),) = server.started
    assert (path, flags) == (str(tmp_path), ["--random-seed", "7", "--tp-size", "2"])
    assert log_path == tmp_path / "log"
    assert server.stopped == 1
    assert said[-1].startswith("SGLang is up after 0 s, log in ")


@pytest.mark.parametrize(("concurrency", "cells"), [(4, 16384), (16, 16384), (64, 65536)])
def test_the_embedded_model_has_room_for_each_conversation(server, concurrency, cells):
    with own(SMOLLM2.name, concurrency=concurrency):
        pass
    ((path, flags, _),) = server.started
    assert path == str(SMOLLM2.checkpoint())
    last = len(flags) - 1 - flags[::-1].index("--max-total-tokens")
    assert flags[last + 1] == str(cells)


def test_a_server_that_died_tells_why_instead_of_an_endpoint_that_does_not_answer(server, tmp_path):
    server.died = FastMTPError("SGLang ended: out of memory")
    with pytest.raises(FastMTPError, match="out of memory"), own(tmp_path):
        raise FastMTPError("none answers")
    server.died = None
    with pytest.raises(FastMTPError, match="none answers"), own(tmp_path):
        raise FastMTPError("none answers")
    assert server.stopped == 2
