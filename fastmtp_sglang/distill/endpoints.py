"""SGLang endpoints that share the requests: retries with back-off, and endpoints that drop out.

The native `/generate` with `input_ids` is used, since it returns token ids. A request goes to the
endpoint with the fewest requests in flight. What may pass (no connection, 429, 5xx) is tried again;
if it does not pass, one token asked of the endpoint tells who is to blame: an endpoint that does
not give it is left out for the rest of the run, else the request has failed. What will not pass
(400) fails the one request at once; a refused key is an error. An endpoint that says how long to
wait (Retry-After) is left alone for so long, and never dropped for it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from fastmtp_sglang.distill.records import FinishReason
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.servers.http_client import (
    FIRST_PAUSE,
    AsyncSession,
    json_object,
    may_pass,
    pause_before,
    refuse_misconfigured,
    retry_after,
    words,
)

_FLAG = "--endpoint"
# What says nothing about the request: a server that restarts, a queue that is full.
_TOO_MUCH = "HTTP 429"
_NOT_THE_REQUEST = (httpx.ConnectError.__name__, _TOO_MUCH, "HTTP 503")
_WORTH_A_LINE = 5.0  # seconds of waiting
_MAX_ROUNDS = 20


class RequestFailedError(Exception):
    """One request that no retry can help; the others go on."""


@dataclass(frozen=True)
class Generation:
    """What a server generated, the stop token included."""

    ids: list[int]
    finish_reason: FinishReason
    stop_id: int | None  # the token that ended it; None for a stop text or a cut


@dataclass
class _Endpoint:
    url: str
    alive: bool = True
    in_flight: int = 0
    busy_until: float = 0.0  # on the monotonic clock; it has asked to be left alone

    @property
    def busy(self) -> float:
        """Seconds that it is still to be left alone."""
        return max(0.0, self.busy_until - time.monotonic())


@dataclass(frozen=True)
class _Failure:
    """What went wrong and may go well the next time, and the seconds to wait where it was told."""

    words: str
    wait: float | None = None

    @property
    def blames_the_request(self) -> bool:
        return not self.words.startswith(_NOT_THE_REQUEST)


class EndpointPool(AsyncSession):
    """The connections to a set of endpoints.

    `retries` is how often one request is tried again at one endpoint, `timeout` the seconds that an
    answer may take. `say` gets lines for people.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        api_key: str | None,
        retries: int,
        timeout: float,
        say: Callable[[str], None],
        pause: float = FIRST_PAUSE,
    ) -> None:
        super().__init__(api_key, timeout, urls)
        self._endpoints = [_Endpoint(url.rstrip("/")) for url in urls]
        self._retries = retries
        self._pause = pause
        self._say = say

    async def describe(self) -> list[dict[str, Any]]:
        """Return what each endpoint that answers says of itself; drops the others.

        Raises FastMTPError when none answers, or one refuses the key or is no SGLang.
        """
        described = []
        for endpoint in self._endpoints:
            try:
                described.append(await self._get(endpoint, "/server_info"))
            except httpx.TransportError as error:
                self._drop(endpoint, words(error))
        return described

    async def generate(self, input_ids: list[int], sampling: dict[str, Any]) -> Generation:
        """Generate after `input_ids`; `sampling` is SGLang's `sampling_params`.

        Raises RequestFailedError for this request alone, FastMTPError when all endpoints are dead
        or one answers in a way that makes going on pointless.
        """
        body = {"input_ids": input_ids, "sampling_params": sampling}
        attempts: dict[str, int] = {}
        rounds = 0
        while True:
            endpoint = self._choose()
            await asyncio.sleep(endpoint.busy)
            endpoint.in_flight += 1
            try:
                answer = await self._post(endpoint, body)
            finally:
                endpoint.in_flight -= 1
            if not isinstance(answer, _Failure):
                return _generation(endpoint.url, answer, input_ids, sampling.get("stop", []))
            tried = attempts[endpoint.url] = attempts.get(endpoint.url, 0) + 1
            if answer.wait is not None and rounds < _MAX_ROUNDS:
                rounds += 1
                attempts[endpoint.url] = 0
                self._leave_alone(endpoint, answer)
            elif tried <= self._retries:
                await asyncio.sleep(pause_before(tried, self._pause))
            elif not await self._answers(endpoint, input_ids[:1]):
                self._drop(endpoint, f"{tried} times {answer.words}")
            elif not answer.blames_the_request and rounds < _MAX_ROUNDS:
                rounds += 1
                attempts[endpoint.url] = 0  # it has just come back, or has room again
            else:  # it answers others: the request is to blame
                raise RequestFailedError(f"{tried} times {answer.words}")

    async def _post(self, endpoint: _Endpoint, body: dict[str, Any]) -> dict[str, Any] | _Failure:
        """Return the answer, or what went wrong if it may go well the next time."""
        try:
            response = await self._client.post(f"{endpoint.url}/generate", json=body)
        except httpx.TransportError as error:
            return _Failure(words(error))
        if may_pass(response.status_code):
            return _Failure(
                f"HTTP {response.status_code}: {response.text[:200]}", retry_after(response)
            )
        _refuse_misconfigured(endpoint.url, response)
        if response.status_code != 200:
            raise RequestFailedError(f"HTTP {response.status_code}: {response.text[:300]}")
        content = json_object(response, endpoint.url, _FLAG)
        reason = (content.get("meta_info") or {}).get("finish_reason") or {}
        if reason.get("type") == "abort":
            message = f"aborted: {reason.get('message')}"
            if (reason.get("status_code") or 500) < 500:
                raise RequestFailedError(message)
            return _Failure(message)
        return content

    async def _answers(self, endpoint: _Endpoint, input_ids: list[int]) -> bool:
        """Tell whether an endpoint generates one token after the first one of a prompt.

        One that has too much to do (429) lives too.
        """
        body = {"input_ids": input_ids, "sampling_params": {"max_new_tokens": 1}}
        try:
            answer = await self._post(endpoint, body)
        except RequestFailedError:
            return False
        return not isinstance(answer, _Failure) or answer.words.startswith(_TOO_MUCH)

    def _leave_alone(self, endpoint: _Endpoint, answer: _Failure) -> None:
        assert answer.wait is not None
        if not endpoint.busy and answer.wait >= _WORTH_A_LINE:
            self._say(f"{endpoint.url} asks to wait {answer.wait:.0f} s: {answer.words}")
        endpoint.busy_until = max(endpoint.busy_until, time.monotonic() + answer.wait)

    async def _get(self, endpoint: _Endpoint, path: str) -> dict[str, Any]:
        response = await self._client.get(f"{endpoint.url}{path}")
        for _ in range(_MAX_ROUNDS):
            wait = retry_after(response) if may_pass(response.status_code) else None
            if wait is None:
                break
            self._leave_alone(endpoint, _Failure(f"HTTP {response.status_code}", wait))
            await asyncio.sleep(wait)
            response = await self._client.get(f"{endpoint.url}{path}")
        _refuse_misconfigured(endpoint.url, response)
        if response.status_code != 200:
            raise FastMTPError(
                f"{_FLAG} {endpoint.url}: {path} gives HTTP {response.status_code}: "
                f"{response.text[:200]}"
            )
        return json_object(response, endpoint.url, _FLAG)

    def _choose(self) -> _Endpoint:
        alive = [endpoint for endpoint in self._endpoints if endpoint.alive]
        if not alive:
            raise FastMTPError(
                f"{_FLAG} {', '.join(endpoint.url for endpoint in self._endpoints)}: none "
                "answers any more; what is answered is kept: start a server and run the same "
                "command again to go on"
            )
        return min(alive, key=lambda endpoint: (endpoint.busy, endpoint.in_flight))

    def _drop(self, endpoint: _Endpoint, why: str) -> None:
        if endpoint.alive:
            endpoint.alive = False
            left = sum(other.alive for other in self._endpoints)
            self._say(f"left out {endpoint.url}: {why}; {left} of {len(self._endpoints)} left")
        self._choose()


def _refuse_misconfigured(url: str, response: httpx.Response) -> None:
    way_out = "it is no SGLang server; give the base URL of one, such as http://127.0.0.1:30000"
    refuse_misconfigured(response, url, _FLAG, way_out)


def _generation(
    url: str, content: dict[str, Any], input_ids: list[int], stop_texts: Sequence[str]
) -> Generation:
    meta = content.get("meta_info") or {}
    ids, reason = content.get("output_ids"), meta.get("finish_reason") or {}
    if not isinstance(ids, list) or reason.get("type") not in ("stop", "length"):
        raise FastMTPError(
            f"{_FLAG} {url}: its answer has no output_ids or finish reason: give an SGLang "
            "server of version 0.5 or later"
        )
    if meta.get("prompt_tokens") != len(input_ids):
        raise FastMTPError(
            f"{_FLAG} {url}: read {meta.get('prompt_tokens')} prompt tokens where "
            f"{len(input_ids)} were sent, so what it answers is not known: use a server that takes "
            "input_ids as they are"
        )
    matched = reason.get("matched")
    if isinstance(matched, str) and matched not in stop_texts:
        # SGLang tells so of logits that are no numbers ("NaN happened").
        raise RequestFailedError(f"stopped with {matched!r}, which is no stop text")
    stop_id = matched if isinstance(matched, int) else None
    # SGLang 0.5.23 returns the stop token among the ids; the head must learn to draft it, so it is
    # added where a server leaves it out.
    if stop_id is not None and ids[-1:] != [stop_id]:
        ids = [*ids, stop_id]
    return Generation(ids, reason["type"], stop_id)
