"""From a URL to an endpoint of the right kind, or the reason why there is none.

Alone: pytest tests/benchmarks/test_connect.py
"""

import asyncio
import sys
import types

import pytest

from fastmtp_benchmarks import connect as connection
from fastmtp_benchmarks.connect import connect, load_tokenizer
from fastmtp_benchmarks.endpoint import Sampling
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.models.prompting import prompt_ids

HELLO = [{"role": "user", "content": "hello"}]


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


def test_what_is_no_server_of_that_kind_is_refused(server):
    server.pages = {}
    with pytest.raises(FastMTPError, match=r"--endpoint .*/v1/models names no model"):
        connected(server.url)
    with pytest.raises(FastMTPError, match=r"--endpoint .*has no /model_info.*--api openai"):
        connected(server.url, api="sglang")
    with pytest.raises(FastMTPError, match=r"--endpoint http://127.0.0.1:1: no answer"):
        connected("http://127.0.0.1:1")


def test_the_servers_own_tokenizer_is_loaded(server, monkeypatch):
    asked = []

    def load(path, flag):
        asked.append((path, flag))
        return Tokenizer()

    monkeypatch.setattr(connection, "load_tokenizer", load)

    async def once():
        endpoint, _ = await connect(server.url)
        async with endpoint:
            return endpoint.encode(HELLO)

    server.pages["/model_info"] = {"model_path": "/model", "tokenizer_path": "/tokenizer"}
    assert asyncio.run(once()) == [5]
    server.pages["/model_info"]["tokenizer_path"] = None
    asyncio.run(once())
    named = f"--endpoint {server.url}: its model"
    assert asked == [("/tokenizer", named), ("/model", named)]


def test_a_tokenizer_that_is_not_there(monkeypatch):
    def from_pretrained(path):
        raise OSError(f"{path} is no repository\nand a page of advice")

    loader = types.SimpleNamespace(from_pretrained=from_pretrained)
    transformers = types.SimpleNamespace(AutoTokenizer=loader)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    with pytest.raises(FastMTPError, match=r"--tokenizer x: no tokenizer there \(x is no") as error:
        load_tokenizer("x", "--tokenizer")
    assert "advice" not in str(error.value)


def test_the_chat_template_of_a_real_tokenizer():
    tokenizer = load_tokenizer(str(SMOLLM2.checkpoint()), "--tokenizer")
    ids = prompt_ids(tokenizer, [{"role": "user", "content": "Why?"}])
    assert tokenizer.decode(ids) == SMOLLM2.prompt("Why?")
    with pytest.raises(FastMTPError, match=r"--tokenizer /nowhere/at/all: no tokenizer there"):
        load_tokenizer("/nowhere/at/all", "--tokenizer")
