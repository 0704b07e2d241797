"""Tool calls are those without speculation: forced ones under their grammar, and free ones.

The small model is held to enumerations (`strict`), so that every forced call is whole.
Run alone: pytest tests/served/test_tool_calls.py (starts two SmolLM2 servers).
"""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from client import TIMEOUT

CITIES, UNITS = ["Paris", "Rome", "São Paulo"], ["celsius", "fahrenheit"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "strict": True,
            "description": "Weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": CITIES}, "unit": {"enum": UNITS}},
                "required": ["city", "unit"],
                "additionalProperties": False,
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "close_window",
            "strict": True,
            "description": "Close the window.",
            "parameters": {
                "type": "object",
                "properties": {"fast": {"type": "boolean"}},
                "required": ["fast"],
                "additionalProperties": False,
            },
        },
    },
]
KEYS = {"get_weather": {"city", "unit"}, "close_window": {"fast"}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CASES = [
    (prompt, choice)
    for prompt in ("What is the weather in Rome?", "It is cold. Close the window!")
    for choice in (NAMED, "required", "auto", "none")
]


def ask(
    url: str, prompt: str, choice: str | dict, *, stream: bool = False, **fields: object
) -> dict:
    """The message, finish reason and completion tokens of one chat completion."""
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": prompt}],
        "tools": TOOLS,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 64,
        **fields,
    }
    url = f"{url}/v1/chat/completions"
    if not stream:
        response = httpx.post(url, json=body, timeout=TIMEOUT, trust_env=False)
        response.raise_for_status()
        answer = response.json()
        (choice_made,) = answer["choices"]
        message = choice_made["message"]
        calls = message.get("tool_calls") or []
        return {
            "content": message.get("content") or "",
            "calls": [(c["function"]["name"], c["function"]["arguments"]) for c in calls],
            "finish_reason": choice_made["finish_reason"],
            "tokens": answer["usage"]["completion_tokens"],
        }
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    found: dict = {"content": "", "calls": [], "finish_reason": None, "tokens": None}
    with httpx.stream("POST", url, json=body, timeout=TIMEOUT, trust_env=False) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk.get("usage"):
                found["tokens"] = chunk["usage"]["completion_tokens"]
            for part in chunk["choices"]:
                found["finish_reason"] = part["finish_reason"] or found["finish_reason"]
                found["content"] += part["delta"].get("content") or ""
                for call in part["delta"].get("tool_calls") or []:
                    function = call["function"]
                    if function.get("name"):
                        found["calls"].append((function["name"], ""))
                    name, arguments = found["calls"][-1]
                    found["calls"][-1] = name, arguments + (function.get("arguments") or "")
    return found


def ask_all(url: str, *, stream: bool) -> list[dict]:
    with ThreadPoolExecutor(len(CASES)) as pool:
        return list(pool.map(lambda case: ask(url, *case, stream=stream), CASES))


@pytest.fixture(scope="module")
def baseline(servers) -> list[dict]:
    return ask_all(servers("smollm2"), stream=False)


def test_forced_calls_are_whole(baseline):
    """Or the comparison below would be one of empty answers."""
    for (_, choice), answer in zip(CASES, baseline, strict=True):
        if choice in ("auto", "none"):
            assert answer["content"]
            continue
        # What follows the call is white space, which the grammar allows without end.
        ((name, arguments),) = answer["calls"]
        assert json.loads(arguments).keys() == KEYS[name]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_equal(servers, baseline, stream):
    reference = ask_all(servers("smollm2"), stream=True) if stream else baseline
    assert ask_all(servers("smollm2-fastmtp"), stream=stream) == reference


# What a model that calls two tools at once says, with text around and characters of many tokens.
TWO_CALLS = """Let me look.
<tool_call>
{"name": "get_weather", "arguments": {"city": "São Paulo", "unit": "celsius"}}
</tool_call>
<tool_call>
{"name": "get_weather", "arguments": {"city": "São Paulo", "unit": "fahrenheit 🌡️ 华氏"}}
</tool_call>
"""


def test_two_calls_in_one_stream(servers):
    """Runs of accepted tokens hold ends and beginnings of calls, which the parser must not join."""
    free = [
        {"type": "function", "function": {**tool["function"], "strict": False}} for tool in TOOLS
    ]
    options = {
        "tools": free,
        "parallel_tool_calls": True,
        "max_tokens": 200,
        "ebnf": f"root ::= {json.dumps(TWO_CALLS, ensure_ascii=False)}",
    }
    prompt = f"Repeat this:\n{TWO_CALLS}"
    expected, fast = (
        ask(servers(kind), prompt, "auto", stream=True, **options)
        for kind in ("smollm2", "smollm2-fastmtp")
    )
    assert [json.loads(arguments)["unit"] for _, arguments in expected["calls"]] == [
        "celsius",
        "fahrenheit 🌡️ 华氏",
    ]
    assert fast == expected
