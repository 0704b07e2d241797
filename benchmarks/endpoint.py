"""A served endpoint as a benchmark sees it: one streamed answer at a time, timed chunk by chunk.

`Endpoint` sends, times, retries and reads server-sent events; what a request and a chunk look like
is the business of `native.py` (SGLang's own /generate) and `openai_api.py` (any OpenAI-compatible
server). The API key goes with every request of every kind, never through a proxy.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httpx

from fastmtp_benchmarks.records import SpecCounters
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.servers.http_client import (
    FIRST_PAUSE,
    AsyncSession,
    async_events,
    json_object,
    may_pass,
    pause_before,
    refuse_misconfigured,
    retry_after,
    words,
)


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn and when they end.

    Attributes:
        output_length: Exactly so many tokens, end-of-sequence ignored; None for the natural end.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = -1
    max_new_tokens: int = 1024
    output_length: int | None = None


@dataclass
class Answer:
    """What has arrived of one answer. See `Record` for the fields that bear the same name."""

    prompt_digest: str = ""
    attempts: int = 0
    lost_seconds: float = 0.0
    error: str | None = None
    text: str = ""
    reasoning: str = ""
    token_ids: list[int] | None = None
    output_tokens: int | None = None
    prompt_tokens: int | None = None
    finish_reason: str | None = None
    speculation: SpecCounters | None = None
    arrivals: list[tuple[float, int | None]] = field(default_factory=list)

    def arrived(self, seconds: float, tokens: int | None) -> None:
        """Note a chunk that brought output; `tokens` of the answer so far, None if not told."""
        if tokens is None or not self.arrivals or tokens > (self.arrivals[-1][1] or 0):
            self.arrivals.append((seconds, tokens))


class AnswerFailedError(Exception):
    """One answer that did not come; `again` tells whether another attempt may help."""

    def __init__(self, reason: str, *, again: bool, wait: float | None = None) -> None:
        super().__init__(reason)
        self.again = again
        self.wait = wait  # seconds, where the server says how many


class Endpoint(AsyncSession, ABC):
    """The connections to one server.

    `timeout` is the seconds that one answer may take, `retries` how often a failed request is sent
    again. `flag` is what errors name: the option that gave the URL.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 600.0,
        retries: int = 2,
        pause: float = FIRST_PAUSE,
        flag: str = "--endpoint",
    ) -> None:
        super().__init__(api_key, timeout, [url])
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._retries = retries
        self._pause = pause
        self._flag = flag

    @abstractmethod
    def _request(self, messages: Sequence[dict[str, str]], sampling: Sampling) -> dict[str, Any]:
        """Return the body that asks for a streamed answer."""

    @abstractmethod
    def _read(self, event: dict[str, Any], answer: Answer, seconds: float) -> None:
        """Take one event into `answer`; raises AnswerFailedError when it tells of an error."""

    @property
    @abstractmethod
    def _path(self) -> str: ...

    @abstractmethod
    async def describe(self) -> dict[str, Any]:
        """Return what the server says of itself, without secrets; raises FastMTPError."""

    @abstractmethod
    async def flush(self) -> bool:
        """Empty the prefix cache; False where the server cannot be told to."""

    async def counters(self) -> SpecCounters | None:
        """Return the server's counters since its start, where it has no counters per answer."""
        return None

    async def answer(self, messages: Sequence[dict[str, str]], sampling: Sampling) -> Answer:
        """Ask once, again after failures that may pass; never raises for a failed answer.

        Times are of the last attempt. Raises FastMTPError when the server refuses the key or has no
        such path: every other request would fail in the same way.
        """
        body = self._request(messages, sampling)
        # Of the messages, not of the body: another kind of endpoint asks the same in other words.
        digest = hashlib.sha256(json.dumps(list(messages)).encode()).hexdigest()[:16]
        began = time.perf_counter()
        for attempt in range(1, self._retries + 2):
            lost = time.perf_counter() - began if attempt > 1 else 0.0
            answer = Answer(prompt_digest=digest, attempts=attempt, lost_seconds=lost)
            try:
                async with asyncio.timeout(self._timeout):
                    await self._stream(body, answer)
                return answer
            except TimeoutError:
                problem = AnswerFailedError(f"no end after {self._timeout:g} s", again=False)
            except AnswerFailedError as error:
                problem = error
            except httpx.HTTPError as error:
                problem = AnswerFailedError(words(error), again=True)
            if not problem.again:
                break
            if attempt <= self._retries:
                pause = pause_before(attempt, self._pause)
                await asyncio.sleep(pause if problem.wait is None else problem.wait)
        lost = time.perf_counter() - began
        return Answer(prompt_digest=digest, attempts=attempt, lost_seconds=lost, error=str(problem))

    async def _stream(self, body: dict[str, Any], answer: Answer) -> None:
        sent = time.perf_counter()
        async with self._client.stream("POST", f"{self.url}{self._path}", json=body) as response:
            if response.status_code != 200:
                await response.aread()
                self._refuse_misconfigured(response)
                raise AnswerFailedError(
                    f"HTTP {response.status_code}: {response.text[:300]}",
                    again=may_pass(response.status_code),
                    wait=retry_after(response),
                )
            async for data in async_events(response.aiter_bytes()):
                seconds = time.perf_counter() - sent
                if data == "[DONE]":
                    break
                try:
                    event = json.loads(data)
                except ValueError as error:
                    raise AnswerFailedError(f"not JSON: {data[:100]!r}", again=False) from error
                if event.get("error"):
                    raise AnswerFailedError(f"error in the stream: {event['error']}", again=True)
                self._read(event, answer, seconds)
        if answer.finish_reason is None:
            raise AnswerFailedError("the stream ended before the answer did", again=True)
        if answer.output_tokens is None:
            if answer.token_ids is None:
                raise AnswerFailedError(
                    "the server tells neither usage nor token ids, so tokens cannot be counted",
                    again=False,
                )
            answer.output_tokens = len(answer.token_ids)
        if answer.speculation is not None:
            answer.speculation = answer.speculation.emitted(answer.output_tokens - 1)

    async def _get(self, path: str) -> httpx.Response | None:
        """Return the response, None if it is not 200; raises FastMTPError without a connection."""
        try:
            response = await self._client.get(f"{self.url}{path}", timeout=30.0)
        except httpx.HTTPError as error:
            raise FastMTPError(
                f"{self._flag} {self.url}: no answer ({words(error)}): start the server, or "
                "correct the URL"
            ) from error
        if response.status_code in (401, 403):
            self._refuse_misconfigured(response)
        return response if response.status_code == 200 else None

    async def _get_object(self, path: str) -> dict[str, Any] | None:
        """As `_get`, of a JSON object."""
        response = await self._get(path)
        return None if response is None else json_object(response, self.url, self._flag)

    def _refuse_misconfigured(self, response: httpx.Response) -> None:
        way_out = "give another --api, or the URL of a server that has it"
        refuse_misconfigured(response, self.url, self._flag, way_out)
