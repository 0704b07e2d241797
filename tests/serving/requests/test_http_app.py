"""Where SGLang's tokenizer workers start, and what they have then.

Alone: pytest tests/serving/requests/test_http_app.py
"""

import asyncio
from types import SimpleNamespace

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.requests import http_app


@pytest.fixture(autouse=True)
def no_path(monkeypatch):
    monkeypatch.delenv(http_app._VARIABLE, raising=False)


def path() -> str:
    from sglang.srt.environ import envs

    return envs.SGLANG_HTTP_SERVER_APP_PATH.get()


def test_one_process_is_left_alone():
    http_app.prepare(1)
    assert path() == http_app._STOCK_PATH


def test_several_start_here():
    http_app.prepare(2)
    http_app.prepare(2)
    assert path() == "fastmtp_sglang.serving.requests.http_app:app"


def test_not_in_somebody_elses_application(monkeypatch):
    monkeypatch.setenv(http_app._VARIABLE, "mine:app")
    with pytest.raises(FastMTPError, match="mine:app does not work with --tokenizer-worker-num 2"):
        http_app.prepare(2)


def test_the_application_is_sglangs(monkeypatch):
    from sglang.srt import plugins, runtime_context
    from sglang.srt.entrypoints import http_server

    done = []

    async def stock() -> str:
        done.append("stock")
        return "server_args"

    spec = SimpleNamespace(speculative_algorithm="FASTMTP")
    monkeypatch.setattr(http_server, "init_multi_tokenizer", stock)
    monkeypatch.setattr(plugins, "load_plugins", lambda: done.append("plugins"))
    monkeypatch.setattr(runtime_context, "get_spec", lambda: spec)
    monkeypatch.setattr(http_app, "install", done.append)
    assert http_app.app is http_app.app is http_server.app
    assert asyncio.run(http_server.init_multi_tokenizer()) == "server_args"
    assert done == ["plugins", "stock", spec]


def test_it_has_nothing_else():
    assert not hasattr(http_app, "application")
