"""How messages are put to a model: by its chat template, or as a text that it goes on with.

A base model has no chat template. To it, messages are the beginning of a text: joined by blank
lines, in their order, with the special tokens (BOS) that its tokenizer puts before every text.
Distillation, benchmarks and the server's own reading of a plain text agree on that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SEPARATOR = "\n\n"


def has_chat_template(tokenizer: Any) -> bool:
    """Whether a tokenizer says how a conversation is put to its model."""
    return bool(getattr(tokenizer, "chat_template", None))


def prompt_ids(tokenizer: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return token ids of the messages (role and content) up to where the answer begins."""
    if not has_chat_template(tokenizer):
        return text_ids(tokenizer, SEPARATOR.join(message["content"] for message in messages))
    return tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
    )


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Return token ids of a plain text; a BOS that the text itself begins with is not repeated."""
    bos = getattr(tokenizer, "bos_token", None)
    ids = tokenizer.encode(text)
    if bos and text.startswith(bos) and ids[:2] == [tokenizer.bos_token_id] * 2:
        return ids[1:]
    return ids
