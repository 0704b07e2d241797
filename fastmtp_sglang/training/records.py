"""Records of distillation -> the documents that are trained on.

A record is one answered turn: `prompt_ids` as the target was given them and `answer_ids` as it
answered. Only answers count. A turn whose prompt repeats an earlier turn of the same conversation
joins its document, so that nothing is run twice. Records with `messages` or another spelling of a
conversation (`files.conversations`) are tokenized with the chat template, see `answers`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmtp_sglang.distill.records import record_files
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.conversations import FIELDS, BadRowError, read_chat
from fastmtp_sglang.files.jsonl import read_jsonl
from fastmtp_sglang.training.answers import answered
from fastmtp_sglang.training.corpus import Corpus, Spans
from fastmtp_sglang.vocabulary.target import Target


@dataclass(frozen=True)
class Turn:
    """One answered turn.

    Attributes:
        conversation: what is held out together.
        prompt_ids: int32, token ids up to the answer.
        answer_ids: int32, the target's answer, its stop token included.
    """

    conversation: str
    prompt_ids: np.ndarray
    answer_ids: np.ndarray


def read_turns(
    paths: Sequence[Path], target: Target, skipped: Callable[[str], None]
) -> Iterator[Turn]:
    """Read record files, or the shards of folders in the order of their names.

    Args:
        paths: files and folders.
        target: its tokenizer is needed for records without token ids.
        skipped: receives file, line and reason of each conversation that cannot be trained on.

    Raises:
        FastMTPError: a path is missing, a line is no record, or a mask cannot be derived.
    """
    for path in record_files(paths):
        for row in read_jsonl(path):
            try:
                yield from _turns_of(row.content, row.place, target)
            except BadRowError as error:
                skipped(f"{row.place}: the conversation {error}")


def documents(turns: Iterable[Turn], max_length: int) -> Corpus:
    """Join turns of a conversation, cut to `max_length`, drop what holds no answer token.

    Raises:
        FastMTPError: nothing is left.
    """
    corpus = Corpus()
    # Of the document that may still grow.
    ids = np.zeros(0, dtype=np.int32)
    spans: Spans = []
    open_conversation = None
    for turn in turns:
        begin, end = len(turn.prompt_ids), len(turn.prompt_ids) + len(turn.answer_ids)
        goes_on = open_conversation == turn.conversation and np.array_equal(
            turn.prompt_ids[: len(ids)], ids
        )
        if not goes_on:
            _append(corpus, ids, spans, max_length)
            spans = []
            open_conversation = turn.conversation
        ids = np.concatenate((turn.prompt_ids, turn.answer_ids))
        spans.append((begin, end))
    _append(corpus, ids, spans, max_length)
    if not len(corpus):
        raise FastMTPError(
            f"no record holds an answer token within the first {max_length} tokens: check the data "
            "and data.max_length."
        )
    return corpus


def is_held_out(conversation: str, fraction: float) -> bool:
    """Whether a conversation belongs to the held-out share, the same in every run."""
    number = int.from_bytes(hashlib.sha256(conversation.encode()).digest()[:8], "big")
    return number < fraction * 2**64


def _append(corpus: Corpus, ids: np.ndarray, spans: Spans, max_length: int) -> None:
    within = [(begin, min(end, max_length)) for begin, end in spans if begin < max_length]
    if any(begin < end for begin, end in within):
        corpus.append(ids[:max_length], within)


def _turns_of(record: Any, place: str, target: Target) -> list[Turn]:
    try:
        if not isinstance(record, dict):
            raise TypeError(f"it is a {type(record).__name__}")
        names = [record.get("conversation"), record.get("id"), place]
        conversation = next(str(name) for name in names if name is not None)
        if "prompt_ids" in record:
            prompt, answer = (
                _token_ids(record[key], target.vocab_size) for key in ("prompt_ids", "answer_ids")
            )
            return [Turn(conversation, prompt, answer)]
        if not any(field in record for field in FIELDS):
            raise KeyError(f"it has the fields {', '.join(record)}")
    except (ValueError, TypeError, KeyError) as error:
        raise FastMTPError(
            f"{place} is no record: {error}. Expected prompt_ids and answer_ids, or messages."
        ) from error
    ids, spans = answered(read_chat(record), target.tokenizer, place)
    whole = np.array(ids, dtype=np.int32)
    return [Turn(conversation, whole[:begin], whole[begin:end]) for begin, end in spans]


def _token_ids(ids: Any, vocab_size: int) -> np.ndarray:
    # Not True, which is an int too; and in C, for there are hundreds of millions.
    if not isinstance(ids, list) or set(map(type, ids)) - {int} or min(ids, default=0) < 0:
        raise TypeError("prompt_ids and answer_ids must be lists of token ids")
    if ids and max(ids) >= vocab_size:
        raise ValueError(f"the id {max(ids)} is outside the target's vocabulary of {vocab_size}")
    return np.array(ids, dtype=np.int32)
