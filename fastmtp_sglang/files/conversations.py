"""What a user says in a conversation, from a row of somebody's data.

A row is written in one of four spellings: `messages` (role and content), `conversations` (ShareGPT:
from and value), `turns` (the user turns, with an optional `system`), or `prompt` (one user turn).
Only the system message and the user turns are taken: whoever asks lets a model answer them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FIELDS = ("messages", "conversations", "turns", "prompt")
_USER = {"user", "human", "prompter"}
_ASSISTANT = {"assistant", "gpt", "bot", "chatgpt", "bing", "bard", "model"}


class BadRowError(Exception):
    """One row that is no conversation of texts."""


@dataclass(frozen=True)
class Conversation:
    """What the user says: a system message or None, and at least one turn."""

    system: str | None
    turns: list[str]


def parse_conversation(row: Any, column: str | None = None) -> Conversation:
    """Read one row; `column` names the field when it is none of the four.

    Raises BadRowError with words that follow "the row".
    """
    if not isinstance(row, Mapping):
        raise BadRowError(f"is a {type(row).__name__}, not an object with fields")
    name = column or next((field for field in _FIELDS if row.get(field) is not None), None)
    if name is None or row.get(name) is None:
        wanted = f"'{column}'" if column else "any of messages, conversations, turns, prompt"
        raise BadRowError(f"has the fields {', '.join(map(str, row))} and not {wanted}")
    value = row[name]
    system = row.get("system") if isinstance(row.get("system"), str) else None
    if isinstance(value, str):
        turns = [value]
    elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        turns = value
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        system, turns = _user_turns(value, system)
    else:
        raise BadRowError(f"has no text, list of texts or list of messages in '{name}'")
    if not turns or any(not turn.strip() for turn in turns):
        raise BadRowError(f"has an empty user turn in '{name}'" if turns else "has no user turn")
    return Conversation(system or None, turns)


def _user_turns(
    messages: list[Mapping[str, Any]], system: str | None
) -> tuple[str | None, list[str]]:
    turns = []
    for message in messages:
        role = message.get("role", message.get("from"))
        content = _text(message.get("content", message.get("value")))
        if role in _USER:
            turns.append(content)
        elif role in ("system", "developer") and not turns:
            system = content
        elif role not in _ASSISTANT:
            # A tool's result cannot be had again, so the turns after it would hang in the air.
            raise BadRowError(f"has a message of the role {role!r}; user, assistant, system work")
    return system, turns


def _text(content: Any) -> str:
    """Return a message's text; parts of text (OpenAI's form) are joined."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" for part in content
    ):
        return "".join(str(part.get("text", "")) for part in content)
    raise BadRowError("has a message whose content is no text")
