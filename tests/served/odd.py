"""Requests and calls that no client should send, drawn from a server's description of itself."""

import json
import random
from collections.abc import Iterator
from typing import Any

JSON = {"Content-Type": "application/json"}

ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**31, 2**63, 10**30, 0.5, 1e308, -1e308, float("nan"), float("inf")),
    *("", "x", "(", "\x00", "\ud800", "🙂" * 50, "1e5", "a/../b", "x" * 5000),
    *([], [[]], [None], ["a", 1], ["(", "b"], [-1], [[[[1]]]], list(range(300))),
    *({}, {"a": {"b": []}}, {"a": 1}, {"lang": ["zh", "en"]}, {"lang": {"a": 1}}),
)
# Fields within fields, where a value of the wrong type gets past the outer one.
NESTED = {
    "custom_params": ("lang", "thinking_budget", "x"),
    "session_params": ("id", "rid", "offset", "replace", "drop_previous_output", "x"),
    "logit_bias": ("5", "-1", "x", "49152"),
    "stream_options": ("include_usage", "continuous_usage_stats"),
    "response_format": ("type", "json_schema", "schema"),
    "watermark": ("key", "x"),
    "chat_template_kwargs": ("x", "enable_thinking"),
    "json_schema": ("type", "properties"),
    "kv_hints": ("x",),
    "tool_choice": ("type", "function"),
}
SAMPLING = (
    *("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "min_new_tokens", "stop"),
    *("stop_token_ids", "stop_regex", "frequency_penalty", "presence_penalty", "structural_tag"),
    *("repetition_penalty", "n", "beam_width", "ignore_eos", "logit_bias", "json_schema", "regex"),
    *("ebnf", "custom_params", "sampling_seed", "skip_special_tokens", "stream_interval"),
    *("spaces_between_special_tokens", "no_stop_trim", "watermark", "stop_strs", "is_normalized"),
    *("stop_str_max_len", "stop_regex_max_len", "stop_regex_strs", "unknown_field"),
)
# Millions of tokens, or of answers, would be legal, and null is all that fit; SGLang would set
# about making them.
COUNTS = ("max_tokens", "max_completion_tokens", "max_new_tokens", "n", "best_of", "beam_width")
MESSAGES = [{"role": "user", "content": "Hi"}]
REQUESTS = {
    "/generate": {"text": "Hi", "sampling_params": {"max_new_tokens": 2, "temperature": 0}},
    "/v1/chat/completions": {"model": "m", "messages": MESSAGES, "max_tokens": 2},
    "/v1/completions": {"model": "m", "prompt": "Hi", "max_tokens": 2},
}
RAW = (
    *(b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b'{"text": "\xc3\x28"}', b"{" * 5000),
    *(b'{"text": "Hi", "text": 3}', b'{"sampling_params": []}', b'{"input_ids": [99999999]}'),
    *(b'{"input_ids": [-1]}', b'{"input_ids": []}', b'{"input_ids": [1.5]}', b'{"text": ""}'),
)
# Calls that do what they are asked for: never with a complete body.
WITHOUT_FIELDS = {
    "/init_weights_update_group": "waits for the other members of the group",
    "/init_weights_send_group_for_remote_instance": "waits for the other members of the group",
    "/send_weights_to_remote_instance": "waits for the other members of the group",
    "/update_weights_from_distributed": "waits for what the others send",
    "/configure_logging": "writes requests to the folder that it is given",
}
# Stops the server from answering, as it should: `test_a_pause` calls it.
NOT_WALKED = ("/pause_generation",)
# What a walk must leave out of a body, and why.
LEFT_OUT = {
    "forward_sleep_time": "makes every forward pass sleep",
    "output_dir": "makes that folder, for a profile",
    "timeout": "a session that ends by itself",
}


def odd_requests(schemas: dict, path: str, generator: random.Random) -> Iterator[dict | bytes]:
    """Bodies of one request, each with odd fields, and every field that there is; broken ones."""
    fields = sorted(_fields(schemas, path))
    assert len(fields) > 50
    yield from RAW
    for field in fields:
        for value in _odd_values(field, generator, 2):
            yield REQUESTS[path] | {field: value}
    for _ in range(30):
        some = generator.sample(fields, 3)
        yield REQUESTS[path] | {name: next(_odd_values(name, generator, 1)) for name in some}
    if path == "/generate":
        for field in SAMPLING:
            for value in _odd_values(field, generator, 3):
                yield {"text": "Hi", "sampling_params": {**_SHORT, field: value}}
    for field in ("role", "content", "name", "tool_calls") if "chat" in path else ():
        for value in generator.sample(ODD, 3):
            yield REQUESTS[path] | {"messages": [MESSAGES[0] | {field: value}]}


_SHORT = {"max_new_tokens": 2, "temperature": 0}


def _odd_values(field: str, generator: random.Random, count: int) -> Iterator[Any]:
    allowed = [value for value in ODD if field not in COUNTS or _is_small(value)]
    yield from generator.sample(allowed, count)
    for inner in NESTED.get(field, ()):
        yield from ({inner: value} for value in generator.sample(ODD, 2))


def _is_small(value: Any) -> bool:
    return value is not None and not (type(value) in (int, float) and value > 64)


def _fields(schemas: dict, path: str) -> dict:
    content = next(iter(schemas["paths"][path].values()))
    content = content.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    for option in (schema, *schema.get("anyOf", ())):
        if "$ref" in option:
            name = option["$ref"].rpartition("/")[2]
            return schemas["components"]["schemas"][name].get("properties", {})
    return {}


def odd_calls(schemas: dict, generator: random.Random) -> Iterator[tuple[str, str, Any]]:
    """Method, path and body of every other route: without a body, with an empty and odd ones."""
    for path, methods in sorted(schemas["paths"].items()):
        if path in REQUESTS or path in NOT_WALKED:
            continue
        where = path.replace("{model}", "x").replace("{response_id}", "x")
        fields = [name for name in _fields(schemas, path) if name not in LEFT_OUT]
        for method in methods:
            yield method, where, None
            if method == "get":
                continue
            yield from ((method, where, body) for body in ({}, [], "x", {"unknown": 1}))
            if path in WITHOUT_FIELDS:
                continue
            for field in fields:
                yield method, where, {field: generator.choice(ODD)}
            for _ in range(3):
                yield method, where, {field: generator.choice(ODD) for field in fields}


def encoded(body: Any) -> bytes | None:
    """A body as it is sent; bytes are sent as they are."""
    if body is None or isinstance(body, bytes):
        return body
    return json.dumps(body).encode("utf-8", "replace")
