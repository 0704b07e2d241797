"""HTTP to a running server, for its users: benchmarks, distillation, the demo.

Clients that carry the API key, what a refusal means for whoever typed the command, which failures
may pass and when, and server-sent events. Errors name the option (`flag`) that gave the URL.
Certificates and proxies are those of the environment (SSL_CERT_FILE, SSL_CERT_DIR, HTTPS_PROXY),
but no proxy is asked for this machine itself.
"""

import email.utils
import ipaddress
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from fastmtp_sglang.errors import FastMTPError

FIRST_PAUSE = 0.5  # seconds, doubled with every retry
_LONGEST_PAUSE = 30.0
_CONNECT_SECONDS = 10.0


def client(api_key: str | None, timeout: float, urls: Sequence[str]) -> httpx.Client:
    """A client for one request at a time; arguments and errors as for `AsyncSession`."""
    return _made(httpx.Client, api_key, timeout, urls)


class AsyncSession:
    """An async context manager that holds the connections of any number of requests at a time.

    `timeout` is the seconds without a byte after which a request fails; connecting has 10. `urls`
    are the servers that it is for. Raises FastMTPError when one is no URL, or for an environment
    variable about certificates or proxies that cannot be followed.
    """

    def __init__(self, api_key: str | None, timeout: float, urls: Sequence[str]) -> None:
        self._client = _made(
            httpx.AsyncClient,
            api_key,
            timeout,
            urls,
            # How many requests are in flight is the caller's business.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Drop the connections."""
        await self._client.aclose()


def _made(
    kind: Callable[..., Any],
    api_key: str | None,
    timeout: float,
    urls: Sequence[str],
    **options: Any,
) -> Any:
    hosts = [_host(url) for url in urls]
    local = [host for host in hosts if _is_local(host)]
    try:
        certificates = httpx.create_ssl_context()
    except OSError as error:
        raise FastMTPError(
            f"SSL_CERT_FILE or SSL_CERT_DIR: holds no certificates ({error}): correct or unset it"
        ) from error
    try:
        return kind(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
            verify=certificates,
            # A proxy cannot reach this machine's loopback, nor should it see the key.
            trust_env=len(local) < len(hosts),
            mounts={f"all://[{host}]" if ":" in host else f"all://{host}": None for host in local},
            **options,
        )
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise FastMTPError(
            f"HTTP_PROXY, HTTPS_PROXY or ALL_PROXY: cannot be used ({error}): correct or unset it, "
            "or name the server in NO_PROXY"
        ) from error


def _host(url: str) -> str:
    try:
        return httpx.URL(url).host
    except httpx.InvalidURL as error:
        raise FastMTPError(
            f"{url}: is no URL ({error}): give one such as http://127.0.0.1:30000"
        ) from error


def _is_local(host: str) -> bool:
    """Whether a host is this machine: the loopback, or the address of all its networks."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def may_pass(status: int) -> bool:
    """Tell whether a request that got this status may get another one later."""
    return status in (408, 425, 429) or status >= 500


def pause_before(attempt: int, first: float = FIRST_PAUSE) -> float:
    """Seconds to wait after attempt 1, 2, ... has failed; spread, so that clients do not march."""
    return min(_LONGEST_PAUSE, first * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)


def retry_after(response: httpx.Response) -> float | None:
    """The seconds that a server asks to wait before the next request, None where it does not."""
    text = response.headers.get("Retry-After", "")
    if text.isdecimal():
        return float(text)
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())


def words(error: httpx.HTTPError) -> str:
    """An error of httpx in a line; some have no message."""
    return f"{type(error).__name__}: {error}".rstrip(": ")


def refuse_misconfigured(response: httpx.Response, url: str, flag: str, way_out: str) -> None:
    """Raise FastMTPError for a status that every other request to `url` would get too.

    `way_out` ends the line about a path that the server does not have.
    """
    status = response.status_code
    if status in (401, 403):
        raise FastMTPError(
            f"--api-key: {url} refuses it (HTTP {status}): give the key that the server was "
            "started with"
        )
    if status in (404, 405):
        raise FastMTPError(
            f"{flag} {url}: has no {response.request.url.path} (HTTP {status}: "
            f"{response.text[:200]}): {way_out}"
        )


def json_object(response: httpx.Response, url: str, flag: str) -> dict[str, Any]:
    """Return the JSON object that a server answered; raises FastMTPError for anything else."""
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise FastMTPError(f"{flag} {url}: answers {response.text[:100]!r}, not a JSON object")
    return content


def events(chunks: Iterator[bytes]) -> Iterator[str]:
    """Yield the data of server-sent events; comments and other fields are passed over."""
    reader = _EventReader()
    for chunk in chunks:
        yield from reader.feed(chunk)
    yield from reader.feed(_EventReader.END)


async def async_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """As `events`, while the chunks arrive."""
    reader = _EventReader()
    async for chunk in chunks:
        for data in reader.feed(chunk):
            yield data
    for data in reader.feed(_EventReader.END):
        yield data


class _EventReader:
    """What of a stream of events has not been handed on yet.

    Lines end in "\\n" or "\\r\\n" alone: httpx's and Python's `splitlines` would also break a JSON
    string at U+2028 or U+0085, which servers send unescaped.
    """

    END = b"\n\n"  # closes what a server has left open

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[str]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" ").decode(errors="replace"))
            elif not line and self._data:
                yield "\n".join(self._data)
                self._data = []
