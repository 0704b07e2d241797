"""A conversation, from a row of somebody's data: the one reader that all commands share.

A row is written in one of four spellings: `messages` (role and content), `conversations` (ShareGPT:
from and value), `turns` (the user turns, with an optional `system`), or `prompt` (one user turn).
`read_chat` gives the messages as SGLang's chat endpoint hands them to a chat template, tool calls
and `tools` included; `parse_conversation` gives what the user says, for those who let a model
answer it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# One of them holds the conversation; the first that a row has.
FIELDS = ("messages", "conversations", "turns", "prompt")
_ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    "tool": "tool",
}
# Beside role and content a template may use these.
_EXTRA = ("name", "tool_call_id", "reasoning_content")


class BadRowError(Exception):
    """One row that is no conversation of texts; the words follow "the row"."""


@dataclass(frozen=True)
class Chat:
    """Messages and tools, as a chat template takes them.

    Attributes:
        messages: `role` (system, user, assistant or tool), `content` (a str) and, where the row
            has them, `tool_calls` (arguments as objects) and the other fields of a message.
        tools: descriptions of functions, None without any.
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


@dataclass(frozen=True)
class Conversation:
    """What the user says: a system message or None, and at least one turn."""

    system: str | None
    turns: list[str]


def read_chat(row: Any, column: str | None = None) -> Chat:
    """Read one row; `column` names the field when it is none of the four.

    Raises BadRowError.
    """
    if not isinstance(row, Mapping):
        raise BadRowError(f"is a {type(row).__name__}, not an object with fields")
    name = column or next((field for field in FIELDS if row.get(field) is not None), None)
    if name is None or row.get(name) is None:
        wanted = f"'{column}'" if column else "any of messages, conversations, turns, prompt"
        raise BadRowError(f"has the fields {', '.join(map(str, row))} and not {wanted}")
    value = [row[name]] if isinstance(row[name], str) else row[name]
    if not isinstance(value, list):
        raise BadRowError(f"has no text, list of texts or list of messages in '{name}'")
    if not value:
        raise BadRowError(f"has no text or message in '{name}'")
    if all(isinstance(item, str) for item in value):
        messages: list[dict[str, Any]] = [{"role": "user", "content": text} for text in value]
    elif all(isinstance(item, Mapping) for item in value):
        messages = [_message(item) for item in value]
    else:
        raise BadRowError(f"has no text, list of texts or list of messages in '{name}'")
    system = row.get("system")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    tools = row.get("tools") or None
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRowError("has tools that are no list of objects")
    return Chat(messages, tools)


def parse_conversation(row: Any, column: str | None = None) -> Conversation:
    """Read what the user says in one row; `column` as above.

    Raises BadRowError, also for a row with tools: their results cannot be had again, so the turns
    after them would hang in the air.
    """
    chat = read_chat(row, column)
    system = None
    turns: list[str] = []
    for message in chat.messages:
        role = message["role"]
        if role == "tool" or "tool_calls" in message or chat.tools:
            raise BadRowError(
                "has tools (`tools`, tool_calls or the role 'tool'), whose results cannot be had "
                "again; leave it out"
            )
        if role == "user":
            turns.append(message["content"])
        elif role == "system":
            if turns:
                raise BadRowError("has a system message after the first user turn")
            system = message["content"]
    if not turns:
        raise BadRowError("has no user turn")
    if any(not turn.strip() for turn in turns):
        raise BadRowError("has an empty user turn")
    return Conversation(system or None, turns)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    given = message.get("role", message.get("from"))
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        raise BadRowError(
            f"has a message of the role {given!r}; system, user, assistant and tool work"
        )
    calls = message.get("tool_calls")
    content = message.get("content", message.get("value"))
    if content is None and calls:
        content = ""
    found: dict[str, Any] = {"role": role, "content": _text(content)}
    found |= {key: message[key] for key in _EXTRA if message.get(key) is not None}
    if calls:
        found["tool_calls"] = _tool_calls(calls)
    return found


def _tool_calls(calls: Any) -> list[dict[str, Any]]:
    """Tool calls with their arguments as objects, which is what templates expect."""
    try:
        parsed = []
        for call in calls:
            function = dict(call["function"])
            arguments = function.get("arguments")
            if isinstance(arguments, str):
                function["arguments"] = json.loads(arguments or "{}")
            parsed.append({**call, "function": function})
    except (ValueError, KeyError, TypeError) as error:
        raise BadRowError(
            "has tool_calls that are no list of functions with a name and JSON arguments"
        ) from error
    return parsed


def _text(content: Any) -> str:
    """Return a message's text; parts of text (OpenAI's form) are joined as SGLang joins them."""
    if isinstance(content, str):
        return content
    if (
        isinstance(content, list)
        and content
        and all(
            isinstance(part, Mapping)
            and part.get("type") == "text"
            and isinstance(part.get("text"), str)
            for part in content
        )
    ):
        return " ".join(part["text"] for part in content)
    raise BadRowError("has a message whose content is no text")
