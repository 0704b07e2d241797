"""SGLang's HTTP application as each of several tokenizer workers runs it (--tokenizer-worker-num).

SGLang starts these processes without plugins, from the import path of an application, which its
SGLANG_HTTP_SERVER_APP_PATH names. `prepare`, in the main process, lets it name the `app` of this
module: it is SGLang's, with what one process that takes requests would have had installed.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from fastmtp_sglang.contract.identity import is_ours
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.requests import guards, request_metrics, streamed_tokens

_VARIABLE = "SGLANG_HTTP_SERVER_APP_PATH"
_STOCK_PATH = "sglang.srt.entrypoints.http_server:app"
_PATH = f"{__name__}:app"


def prepare(tokenizer_worker_num: int) -> None:
    """Let the tokenizer workers of this server start here, if there are several.

    Raises:
        FastMTPError: they are to start somewhere else.
    """
    if tokenizer_worker_num == 1:
        return
    path = os.environ.get(_VARIABLE, _STOCK_PATH)
    if path not in (_STOCK_PATH, _PATH):
        raise FastMTPError(
            f"{_VARIABLE}={path} does not work with --tokenizer-worker-num {tokenizer_worker_num}: "
            "its workers would let through requests that end the server. Unset it, or leave out "
            "--tokenizer-worker-num."
        )
    os.environ[_VARIABLE] = _PATH


def install(spec: Any) -> None:
    """Put everything about requests in place in this process, which takes them; idempotent.

    Args:
        spec: SGLang's arguments of speculation, resolved.
    """
    guards.install_in_tokenizer_manager()
    if is_ours(spec.speculative_algorithm):
        request_metrics.install(spec.speculative_num_steps, adaptive=spec.speculative_adaptive)
        streamed_tokens.install()


@cache
def _application() -> Any:
    from sglang.srt.entrypoints import http_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.runtime_context import get_spec

    load_plugins()
    stock = http_server.init_multi_tokenizer

    async def init_multi_tokenizer() -> Any:
        server_args = await stock()
        install(get_spec())
        return server_args

    http_server.init_multi_tokenizer = init_multi_tokenizer
    return http_server.app


def __getattr__(name: str) -> Any:
    """`app`, for a worker's own start alone: it imports SGLang's server."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _application()
