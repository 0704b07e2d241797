"""The server side of a distillation run: the target's context, and a server of our own if need be.

With endpoints given, they are checked for the target's tokenizer. Without, `sglang serve` is
started as a child process and stopped at the end: the same path as with endpoints, and the same
crash isolation, which the in-process `sglang.Engine` would not give.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fastmtp_sglang.contract.identity import ALGORITHM
from fastmtp_sglang.distill.chat import Prompting
from fastmtp_sglang.distill.distiller import Distiller, Progress
from fastmtp_sglang.distill.endpoints import EndpointPool
from fastmtp_sglang.distill.prompts import PromptSource
from fastmtp_sglang.distill.settings import Settings
from fastmtp_sglang.distill.store import Store
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models import catalog
from fastmtp_sglang.servers import http_client, launch
from fastmtp_sglang.servers.server_process import ServerProcess
from fastmtp_sglang.vocabulary.target import Target

# KV cells per conversation in flight for a built-in model: prompt and answer of usual length.
# SGLang evicts and recomputes when answers grow beyond what there is.
_CELLS_PER_CONVERSATION = 1024
# Holds words, signs, digits and another script, on which any two tokenizers differ.
_PROBE = "def f(x): return 3.14159 * x  # Größe, 长城, naïve façade\n\tunbelievable"


@dataclass(frozen=True)
class Job:
    """What is to be answered; `limit` counts rows of each source, `self_prompt` conversations."""

    settings: Settings
    target: Target
    chat: Prompting
    sources: list[PromptSource]
    self_prompt: int | None
    limit: int | None


@dataclass(frozen=True)
class Link:
    """How the servers are reached; see `EndpointPool`."""

    urls: tuple[str, ...]
    api_key: str | None
    retries: int
    timeout: float
    concurrency: int


async def hold(
    job: Job,
    store: Store,
    link: Link,
    say: Callable[[str], None],
    on_progress: Callable[[Progress], None],
) -> None:
    """Hold all conversations that `store` does not have yet.

    Raises FastMTPError when no endpoint is left or one cannot be used; what is answered is kept.
    """
    check_tokenizers(link.urls, link.api_key, job.target, say)
    async with EndpointPool(
        link.urls,
        api_key=link.api_key,
        retries=link.retries,
        timeout=link.timeout,
        say=say,
    ) as pool:
        described = await pool.describe()
        distiller = Distiller(
            settings=job.settings,
            chat=job.chat,
            pool=pool,
            store=store,
            context_length=context_length(described, job.target),
            vocab_size=job.target.vocab_size,
            seeded=all(map(_obeys_seeds, described)),
            concurrency=link.concurrency,
            on_progress=on_progress,
        )
        if job.self_prompt is not None:
            await distiller.answer_itself(job.self_prompt)
        else:
            await distiller.answer_prompts(job.sources, job.limit)


def _obeys_seeds(server: dict[str, Any]) -> bool:
    """Whether a server draws by each request's seed, by what it says of itself."""
    algorithm = str(server.get("speculative_algorithm")).upper()
    return algorithm == ALGORITHM or bool(server.get("enable_deterministic_inference"))


@contextlib.contextmanager
def own_server(
    model: str,
    sglang_flags: Sequence[str],
    *,
    concurrency: int,
    random_seed: int,
    log_path: Path,
    say: Callable[[str], None],
    on_wait: Callable[[float, str], None],
) -> Iterator[ServerProcess]:
    """Serve `model` without speculation while the body runs.

    `random_seed` must be another one for every start: SGLang would draw the same prompts again.
    Raises FastMTPError with the end of the log when the server does not start.
    """
    flags = ["--random-seed", str(random_seed)]
    if catalog.find(model) is not None:
        cells = max(16384, concurrency * _CELLS_PER_CONVERSATION)
        flags += ["--max-total-tokens", str(cells)]
    _, path, *rest = launch.arguments(
        model, [*flags, *sglang_flags], speculation=False, progress=say
    )
    began = time.monotonic()
    with ServerProcess(path, rest, log_path=log_path, on_wait=on_wait) as server:
        say(f"SGLang is up after {time.monotonic() - began:.0f} s, log in {log_path}")
        try:
            yield server
        except FastMTPError:
            server.check_alive()  # its own log tells more than an endpoint that does not answer
            raise


def context_length(described: Sequence[dict[str, Any]], target: Target) -> int:
    """Return the shortest context of the target and all endpoints, in tokens.

    `described` holds what each endpoint says of itself. Raises FastMTPError when nobody knows the
    context.
    """
    limits = [target.config.get("max_position_embeddings")]
    limits += [server.get("context_length") for server in described]
    known = [limit for limit in limits if isinstance(limit, int) and limit > 0]
    if not known:
        raise FastMTPError(
            f"--model {target.path}: its config.json has no max_position_embeddings, and no "
            "endpoint tells its context: start the servers with --context-length"
        )
    return min(known)


def check_tokenizers(
    urls: Sequence[str], api_key: str | None, target: Target, say: Callable[[str], None]
) -> None:
    """Refuse endpoints that serve a model with another tokenizer than the target's.

    Those that do not answer are left to the pool. Raises FastMTPError.
    """
    expected = target.encode(_PROBE)
    body = {"prompt": _PROBE, "add_special_tokens": False}
    with http_client.client(api_key, 30, urls) as client:
        for url in urls:
            try:
                response = client.post(f"{url.rstrip('/')}/tokenize", json=body)
            except httpx.TransportError:
                continue
            if response.status_code in (401, 403):
                continue  # the pool's first request refuses it with the right words
            if response.status_code != 200:
                say(
                    f"{url} does not tokenize (HTTP {response.status_code}): whether it serves "
                    f"the model {target.path} is not checked"
                )
            elif http_client.json_object(response, url, "--endpoint").get("tokens") != expected:
                raise FastMTPError(
                    f"--endpoint {url}: its tokenizer is not that of --model {target.path}; give "
                    "the model that it serves"
                )
