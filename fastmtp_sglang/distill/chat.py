"""Prompts as token ids, as SGLang's chat endpoint makes them: the chat template, and nothing else.

A beginning-of-sequence token is there where the template writes one, whatever the tokenizer would
put before a plain text.

Also the way to let the target write prompts itself: the template is rendered with a sentinel in
place of the user's message and cut there. What precedes it invites the target to write a user turn
as it saw many in training; what follows it tells how the turn ends.

A target without a template is given the messages as a text that it goes on with
(`models.prompting`), and writes the first line of such texts itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastmtp_sglang.distill.records import Message
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.prompting import SEPARATOR, has_chat_template, prompt_ids

# Plain letters: no template trims or escapes them, and nobody writes this word.
_SENTINEL = "fastmtpusermessagesentinel"


@dataclass(frozen=True)
class UserTurn:
    """Where a user turn begins and how it ends.

    Attributes:
        prefix_ids: The conversation up to where the user's words begin.
        start_ids: First words that the user is given, to be gone on with.
        stop_ids: Tokens that end the turn, beside the model's own stop tokens.
        stop_text: Plain text that ends it, for templates without a token for that, else None.
    """

    prefix_ids: list[int]
    start_ids: list[int]
    stop_ids: list[int]
    stop_text: str | None


class Prompting(ABC):
    """How conversations are put to a target, and how its answers are read.

    Attributes:
        needs_whole_turns: Whether a turn that was cut is no prompt.
    """

    needs_whole_turns = True

    def __init__(self, tokenizer: Any, model: str) -> None:
        self._tokenizer = tokenizer
        self._model = model
        self._special = frozenset(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    @abstractmethod
    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the conversation up to where the answer begins.

        Raises FastMTPError when the template refuses it (a system message it does not know, ...).
        """

    @abstractmethod
    def user_turn(self, messages: Sequence[Message], start: str = "") -> UserTurn:
        """Return where and how the target would write the user turn after `messages`.

        `start` holds the first words of the turn.

        Raises FastMTPError where the target cannot be made to write one.
        """

    def has_special(self, ids: Sequence[int]) -> bool:
        """Tell whether the ids hold a control token, which no user types."""
        return not self._special.isdisjoint(ids)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids without control tokens."""
        return self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def prompting(tokenizer: Any, model: str) -> Prompting:
    """Return the way of a tokenizer, with a chat template or without; errors name `model`."""
    return (ChatTemplate if has_chat_template(tokenizer) else PlainText)(tokenizer, model)


class PlainText(Prompting):
    """Texts that a target without a chat template goes on with, from any place."""

    needs_whole_turns = False

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the messages as one text, BOS first where the tokenizer puts one."""
        return prompt_ids(self._tokenizer, [message.model_dump() for message in messages])

    def user_turn(self, messages: Sequence[Message], start: str = "") -> UserTurn:
        """Return where a text begins, or its next paragraph does; it ends with the line.

        Raises FastMTPError where there is neither BOS nor a start to go on from.
        """
        prefix = self.prompt_ids(messages)
        if messages:
            prefix += self._encode(SEPARATOR)
        started = self._encode(start)
        if not prefix and not started:
            raise FastMTPError(
                f"--self-prompt: the tokenizer of {self._model} puts no token before a text, so "
                "there is nothing that the target could go on from; give --prompt-starts, or "
                "--prompts"
            )
        return UserTurn(prefix, started, [], "\n")


class ChatTemplate(Prompting):
    """A tokenizer's chat template."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the conversation as the template writes it."""
        return self._encode(self._render(messages, answer=True))

    def user_turn(self, messages: Sequence[Message], start: str = "") -> UserTurn:
        """Return where the template shows the user's words.

        Raises FastMTPError when it does not show them exactly once.
        """
        rendered = self._render([*messages, Message(role="user", content=_SENTINEL)], answer=False)
        before, *rest = rendered.split(_SENTINEL)
        prefix = self._encode(before)
        if len(rest) != 1 or not prefix:
            raise FastMTPError(
                f"--self-prompt: the chat template of {self._model} does not mark where a user "
                "turn begins, so the target cannot be made to write one; give --prompts"
            )
        started = self._tokenizer.encode(start, add_special_tokens=False)
        # Templates end the turn with a special token (<|im_end|>, <|eot_id|>) or with a text.
        after = rest[0].strip()
        ids = self._tokenizer.encode(after, add_special_tokens=False) if after else []
        if ids and ids[0] in self._special:
            return UserTurn(prefix, started, [ids[0]], None)
        return UserTurn(prefix, started, [], after.splitlines()[0] if after else None)

    def _render(self, messages: Sequence[Message], *, answer: bool) -> str:
        import jinja2

        try:
            return self._tokenizer.apply_chat_template(
                [message.model_dump() for message in messages],
                tokenize=False,
                add_generation_prompt=answer,
            )
        except (jinja2.TemplateError, ValueError, TypeError) as error:
            raise FastMTPError(
                f"--model {self._model}: its chat template refuses a conversation of the roles "
                f"{', '.join(message.role for message in messages)}: {error}"
            ) from error
