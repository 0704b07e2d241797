"""What makes an answer unfit to learn from: cut reasoning, repetition, its length.

Pure functions on one record. Repetition is looked for in token ids, which works for every script.
"""

import re
from dataclasses import dataclass

import numpy as np

from fastmtp_sglang.distill.records import Record

# Reasoning tags of Qwen3, DeepSeek-R1, MiMo (think), and of others.
_REASONING = re.compile(r"<(/?)(?:think|thinking|reasoning|thought)>|\[(/?)THINK\]")
# Long enough for a paragraph that a model writes again and again.
_MAX_PERIOD = 200
# A loop is something said at least this often in a row, and at least this many tokens of it: a
# rule of dashes or a list of short lines is none.
_MIN_REPEATS = 4
_MIN_LOOP_TOKENS = 48
# Shorter answers have too few n-grams for a share to say anything.
_MIN_REPETITION_TOKENS = 64


@dataclass(frozen=True)
class Limits:
    """What is kept.

    Attributes:
        min_tokens: Of an answer.
        max_tokens: Of an answer; None for any number.
        ngram: Tokens of an n-gram.
        max_repetition: Largest share of an answer's n-grams that it has said before.
        keep_truncated: Whether answers cut by length are kept.
    """

    min_tokens: int = 8
    max_tokens: int | None = None
    ngram: int = 8
    max_repetition: float = 0.4
    keep_truncated: bool = True


def problem(record: Record, limits: Limits, prompt_end: str = "") -> str | None:
    """Return why a record is dropped, in two or three words, or None.

    `prompt_end` is the end of the prompt's text: templates of reasoning models open the reasoning
    there.
    """
    ids = np.array(record.answer_ids, dtype=np.int64)
    if len(ids) < limits.min_tokens:
        return "too short"
    if limits.max_tokens is not None and len(ids) > limits.max_tokens:
        return "too long"
    if reasoning_is_open(record.answer, prompt_end):
        return "reasoning without an end"
    # An answer may come to an end after all: the stop token is no way out of a loop.
    if ends_in_loop(ids[:-1] if record.finish_reason == "stop" else ids):
        return "ends in a loop"
    if len(ids) >= _MIN_REPETITION_TOKENS and repeated_share(ids, limits.ngram) > (
        limits.max_repetition
    ):
        return "repeated n-grams"
    if not limits.keep_truncated and record.finish_reason == "length":
        return "cut by length"
    return None


def reasoning_is_open(answer: str, prompt_end: str = "") -> bool:
    """Tell whether reasoning was begun, in the prompt's last words or the answer, and not ended."""
    is_open = False
    for tag in _REASONING.finditer(prompt_end + answer):
        is_open = not (tag[1] or tag[2])
    return is_open


def ends_in_loop(ids: np.ndarray) -> bool:
    """Tell whether int [n] ends with one passage said again and again."""
    reversed_ids = ids[::-1]
    longest = min(_MAX_PERIOD, len(ids) // _MIN_REPEATS)
    # Only where the last token was said before can a loop have begun.
    for period in np.flatnonzero(reversed_ids[1 : longest + 1] == reversed_ids[:1]) + 1:
        same = reversed_ids[:-period] == reversed_ids[period:]
        matching = int(same.argmin()) if not same.all() else len(same)
        looped = matching + period
        if looped >= _MIN_REPEATS * period and looped >= _MIN_LOOP_TOKENS:
            return True
    return False


def repeated_share(ids: np.ndarray, ngram: int) -> float:
    """Return the share of the n-grams of int [n] that occurred before in it; 0 without any."""
    if len(ids) <= ngram:
        return 0.0
    windows = np.lib.stride_tricks.sliding_window_view(ids, ngram)
    return 1 - len(np.unique(windows, axis=0)) / len(windows)
