"""Requests that FASTMTP cannot answer as the model alone would get HTTP 400, not another answer.

Run alone: pytest tests/served/test_refused_requests.py (starts two tiny servers).
"""

import httpx
import pytest
from client import TIMEOUT


def native(url: str, **sampling) -> httpx.Response:
    body = {"text": "Once", "sampling_params": {"max_new_tokens": 4, **sampling}}
    return httpx.post(f"{url}/generate", json=body, timeout=TIMEOUT)


def openai(url: str, **fields) -> httpx.Response:
    body = {"model": "default", "prompt": "Once", "max_tokens": 4, **fields}
    return httpx.post(f"{url}/v1/completions", json=body, timeout=TIMEOUT)


@pytest.mark.parametrize(
    ("ask", "fields", "named"),
    [
        (native, {"temperature": 0.7, "sampling_seed": 3}, "sampling_seed 3"),
        (openai, {"temperature": 0.7, "seed": 3}, "sampling_seed 3"),
    ],
)
def test_refused_with_a_reason(servers, ask, fields, named):
    refused = ask(servers("mimo-native"), **fields)
    assert refused.status_code == 400
    assert f"{named} is " in refused.text
    assert "use a server without speculation" in refused.text
    assert ask(servers("mimo"), **fields).status_code == 200


@pytest.mark.parametrize("ask", [native, openai])
def test_the_server_goes_on(servers, ask):
    assert ask(servers("mimo-native"), temperature=0).status_code == 200
