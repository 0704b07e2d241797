"""Records of distillation -> the documents that are trained on.

A record is one answered turn: `prompt_ids` as the target was given them and `answer_ids` as it
answered. Only answers count. A turn whose prompt repeats an earlier turn of the same conversation
joins its document, so that nothing is run twice. Records with `messages` alone (from elsewhere) are
tokenized with the chat template; which tokens the assistant wrote is asked of the template or
derived by rendering turn by turn, and if neither works that is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.jsonl import read_jsonl
from fastmtp_sglang.training.packing import Document


@dataclass(frozen=True)
class Turn:
    """One answered turn.

    Attributes:
        conversation: what is held out together.
        prompt_ids: token ids up to the answer.
        answer_ids: the target's answer, its stop token included.
    """

    conversation: str
    prompt_ids: list[int]
    answer_ids: list[int]


def read_turns(paths: Sequence[Path], tokenizer: Any) -> Iterator[Turn]:
    """Read record files, or the `*.jsonl` files of folders in the order of their names.

    Args:
        paths: files and folders.
        tokenizer: of the target; only records without token ids need it.

    Raises:
        FastMTPError: a path is missing, a line is no record, or a mask cannot be derived.
    """
    for path in _files(paths):
        for row in read_jsonl(path):
            yield from _turns_of(row.content, row.place, tokenizer)


def documents(turns: Iterator[Turn] | Sequence[Turn], max_length: int) -> list[Document]:
    """Join turns of a conversation, cut to `max_length`, drop what holds no answer token.

    Raises:
        FastMTPError: nothing is left.
    """
    joined: list[tuple[list[int], list[tuple[int, int]]]] = []
    open_conversation = None
    for turn in turns:
        span = (len(turn.prompt_ids), len(turn.prompt_ids) + len(turn.answer_ids))
        ids = turn.prompt_ids + turn.answer_ids
        if open_conversation == turn.conversation:
            before, spans = joined[-1]
            if turn.prompt_ids[: len(before)] == before:
                joined[-1] = (ids, [*spans, span])
                continue
        open_conversation = turn.conversation
        joined.append((ids, [span]))
    found = []
    for ids, spans in joined:
        counted = torch.zeros(len(ids), dtype=torch.bool)
        for start, end in spans:
            counted[start:end] = True
        if counted[:max_length].any():
            found.append(Document(torch.tensor(ids[:max_length]), counted[:max_length]))
    if not found:
        raise FastMTPError(
            f"no record holds an answer token within the first {max_length} tokens: check the data "
            "and data.max_length."
        )
    return found


def is_held_out(conversation: str, fraction: float) -> bool:
    """Whether a conversation belongs to the held-out share, the same in every run."""
    number = int.from_bytes(hashlib.sha256(conversation.encode()).digest()[:8], "big")
    return number < fraction * 2**64


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        found = [path] if path.is_file() else sorted(filter(Path.is_file, path.glob("*.jsonl")))
        if not found:
            reason = "holds no *.jsonl file" if path.is_dir() else "does not exist"
            raise FastMTPError(f"training data {path} {reason}.")
        files += found
    return files


def _turns_of(record: Any, place: str, tokenizer: Any) -> list[Turn]:
    try:
        conversation = str(record.get("conversation", record.get("id", place)))
        if "prompt_ids" in record:
            turn = Turn(conversation, list(record["prompt_ids"]), list(record["answer_ids"]))
            if not all(type(i) is int and i >= 0 for i in turn.prompt_ids + turn.answer_ids):
                raise TypeError("prompt_ids and answer_ids must be lists of token ids")
            return [turn]
        messages = record["messages"]
    except (TypeError, KeyError, AttributeError) as error:
        raise FastMTPError(
            f"{place} is no record: {error}. Expected prompt_ids and answer_ids, or messages."
        ) from error
    return _answered(messages, conversation, place, tokenizer)


def _answered(
    messages: list[dict[str, str]], conversation: str, place: str, tokenizer: Any
) -> list[Turn]:
    if "{% generation" in (tokenizer.get_chat_template() or "").replace("{%-", "{%"):
        rendered = tokenizer.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        spans = _spans(rendered["assistant_masks"])
        ids = rendered["input_ids"]
    else:
        ids, spans = _rendered_turn_by_turn(messages, place, tokenizer)
    if not spans:
        raise FastMTPError(
            f"{place}: the chat template marks no token as the assistant's, so nothing could be "
            "trained. Give records with prompt_ids and answer_ids (`fastmtp distill`)."
        )
    return [Turn(conversation, ids[:start], ids[start:end]) for start, end in spans]


def _spans(mask: Sequence[int]) -> list[tuple[int, int]]:
    edges = [i for i, (a, b) in enumerate(zip([0, *mask], [*mask, 0], strict=True)) if a != b]
    return list(zip(edges[::2], edges[1::2], strict=True))


def _rendered_turn_by_turn(
    messages: list[dict[str, str]], place: str, tokenizer: Any
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of the conversation up to the last answer, and where the answers lie.

    The template must only ever append: what it renders up to a turn is a prefix of what it renders
    with the answer, up to and including the stop token. Anything after that (a line break) is the
    template's, not the assistant's.
    """

    def render(count: int, prompt: bool) -> list[int]:
        return tokenizer.apply_chat_template(
            messages[:count], tokenize=True, return_dict=False, add_generation_prompt=prompt
        )

    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
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
