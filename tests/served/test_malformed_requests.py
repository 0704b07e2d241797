"""Nonsense at the door: a 4xx answer, never a dead server, and no harm to the request beside it.

Random, with a fixed seed. Run alone: pytest tests/served/test_malformed_requests.py
"""

import json
import random

import httpx
from client import TIMEOUT, generate

SEED = 20261125
VALUES = (
    *(None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, -1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "\x00",
        "\ud800",
        "🙂" * 50,
        [],
        [[]],
        [None],
        ["a", 1],
        {},
        {"a": {"b": []}},
        "1e5",
    ),
)
SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "min_new_tokens", "stop"),
    *("stop_token_ids", "frequency_penalty", "presence_penalty", "repetition_penalty", "n"),
    *("ignore_eos", "logit_bias", "json_schema", "regex", "ebnf", "custom_params"),
    *("sampling_seed", "skip_special_tokens", "stream_interval", "unknown_field"),
)
TOP = ("text", "input_ids", "stream", "return_logprob", "top_logprobs_num", "rid", "unknown_field")


def bodies(count: int):
    generator = random.Random(SEED)
    for _ in range(count):
        body = {"text": "Hi", "sampling_params": {"max_new_tokens": 2, "temperature": 0}}
        for _ in range(generator.randint(1, 3)):
            if generator.random() < 0.75:
                body["sampling_params"][generator.choice(SAMPLING)] = generator.choice(VALUES)
            else:
                body[generator.choice(TOP)] = generator.choice(VALUES)
        # Millions of tokens, or of answers, would be legal; SGLang would set about making them.
        for name, most in (("max_new_tokens", 64), ("n", 4)):
            if not isinstance(asked := body["sampling_params"].get(name, 1), int) or asked > most:
                body["sampling_params"].pop(name)
        body["sampling_params"].setdefault("max_new_tokens", 2)
        yield json.dumps(body).encode("utf-8", "surrogatepass")


RAW = (
    *(b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"text": "\xc3\x28"}', b"{" * 5000),
    *(b'{"text": "Hi", "text": 3}', b'{"sampling_params": []}', b'{"input_ids": [99999999]}'),
    *(b'{"input_ids": [-1]}', b'{"input_ids": []}', b'{"input_ids": [1.5]}', b'{"text": ""}'),
)


def test_the_server_survives(servers):
    url = servers("mimo-native")
    expected = generate(servers("mimo"), "Once upon a time", max_new_tokens=12)
    codes: dict[int, int] = {}
    with httpx.Client(timeout=httpx.Timeout(120)) as client:
        for number, body in enumerate([*RAW, *bodies(150)]):
            for path in ("/generate", "/v1/completions") if number % 3 == 0 else ("/generate",):
                response = client.post(
                    f"{url}{path}", content=body, headers={"Content-Type": "application/json"}
                )
                codes[response.status_code] = codes.get(response.status_code, 0) + 1
                assert response.status_code in (200, 400, 404, 413, 422), (
                    body[:300],
                    response.text[:500],
                )
            if number % 20 == 0:
                assert (
                    generate(url, "Once upon a time", max_new_tokens=12).visible == expected.visible
                )
    assert httpx.get(f"{url}/health_generate", timeout=TIMEOUT).status_code == 200
    assert codes[200] > 2, codes
    assert sum(n for code, n in codes.items() if code >= 400) > 50, codes
