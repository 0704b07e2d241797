"""The HTTP client for a server's own users: benchmarks and distillation."""

import httpx

_CONNECT_SECONDS = 10.0


def async_client(api_key: str | None, timeout: float) -> httpx.AsyncClient:
    """A client for any number of requests at a time, the API key with every one of them.

    `timeout` is the seconds without a byte after which a request fails; connecting has 10.
    """
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
        timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
        # How many requests are in flight is the caller's business.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        # A proxy of the environment cannot reach loopback, nor should it see the key.
        trust_env=False,
    )
