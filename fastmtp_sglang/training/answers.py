"""Which tokens of a rendered conversation the assistant wrote.

A chat template may say it (`{% generation %}`). For others the conversation is rendered turn by
turn, which works where the template only ever appends; where it does not, that is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.conversations import BadRowError, Chat

# Token ids of a conversation, and (start, end) of each answer in them, its stop token included.
Answered = tuple[list[int], list[tuple[int, int]]]


def answered(chat: Chat, tokenizer: Any, place: str) -> Answered:
    """Apply the chat template, with the tools of the conversation, and find the answers.

    Args:
        chat: of `files.conversations`.
        tokenizer: of the target.
        place: file and line, for errors.

    Raises:
        BadRowError: this conversation holds no answer, or the template does not take it.
        FastMTPError: there is no template, or none that tells what the assistant wrote.
    """
    template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    if not template:
        raise FastMTPError(
            f"{place}: holds messages, and the target's tokenizer has no chat template, so it is "
            "not known how they are put to the model. Give records with prompt_ids and answer_ids "
            "(`fastmtp distill`), or an instruction-tuned target."
        )
    roles = [message["role"] for message in chat.messages]
    if "assistant" not in roles:
        raise BadRowError("has no message of the assistant, so nothing to learn")
    if "user" not in roles[: roles.index("assistant")]:
        raise BadRowError("begins with the assistant: there is no prompt to its first message")
    try:
        if "{% generation" in template.replace("{%-", "{%"):
            return _marked_by_template(chat, tokenizer, place)
        return _turn_by_turn(chat, tokenizer, place)
    except FastMTPError:
        raise
    except (TemplateError, TypeError, ValueError) as error:
        raise BadRowError(f"is not taken by the chat template: {error}") from error


def _marked_by_template(chat: Chat, tokenizer: Any, place: str) -> Answered:
    rendered = tokenizer.apply_chat_template(
        chat.messages,
        tools=chat.tools,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    spans = _spans(rendered["assistant_masks"])
    if not spans:
        raise FastMTPError(
            f"{place}: the chat template marks no token as the assistant's, so nothing could be "
            "trained. Give records with prompt_ids and answer_ids (`fastmtp distill`)."
        )
    return rendered["input_ids"], spans


def _spans(mask: Sequence[int]) -> list[tuple[int, int]]:
    edges = [i for i, (a, b) in enumerate(zip([0, *mask], [*mask, 0], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _turn_by_turn(chat: Chat, tokenizer: Any, place: str) -> Answered:
    """Ids of the conversation up to the last answer, and where the answers lie.

    What the template renders up to a turn has to be a prefix of what it renders with the answer, up
    to and including the stop token. Anything after that (a line break) is the template's, not the
    assistant's.
    """

    def render(count: int, prompt: bool) -> list[int]:
        return tokenizer.apply_chat_template(
            chat.messages[:count],
            tools=chat.tools,
            tokenize=True,
            return_dict=False,
            add_generation_prompt=prompt,
        )

    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(chat.messages):
        if message["role"] != "assistant":
            continue
        prompt, whole = render(index, True), render(index + 1, False)
        answer = whole[len(prompt) :]
        appends = whole[: len(prompt)] == prompt and whole[: len(ids)] == ids
        if not appends or tokenizer.eos_token_id not in answer:
            raise FastMTPError(
                f"{place}: which tokens the assistant wrote cannot be derived from the chat "
                "template (it changes earlier turns, or ends none with the end-of-text token). "
                "Use a template with {% generation %}, or records with prompt_ids and answer_ids."
            )
        end = len(prompt) + answer.index(tokenizer.eos_token_id) + 1
        ids = whole[:end]
        spans.append((len(prompt), end))
    return ids, spans
