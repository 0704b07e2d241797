"""Token ids that every built list holds, whatever was counted.

Without them a list cannot end an answer, call a tool, write a number or spell a word that the
corpus lacked: a small corpus once dropped the byte tokens that build accented Latin letters.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2

from fastmtp_sglang.vocabulary.target import Target

# Spelled out in ordinary tokens by models that have no single token for them.
_MARKERS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
# What tokenizers call ids that they keep for later: <unused12> (6,242 of Gemma's, three quarters of
# an 8k list), [unused12], <|reserved_special_token_12|>, <SPECIAL_12>, <extra_id_12> and so on.
# Nothing taught a target to write them. A model that gave one a meaning names it in its chat
# template or stops at it, and these are classes of their own.
_KEPT_FOR_LATER = re.compile(
    r"[<>\[|\uff5c]+"
    r"(?:unused|reserved|place[_\u2581]?holder|dummy|extra|special)"
    r"(?:[_\u2581]?(?:special|token|id|no))*[_\u2581]?\d+"
    r"[<>\]|\uff5c]+",
    re.IGNORECASE,
)
# One digit, with or without the blank before it. Longer numbers are left to the counts: a tokenizer
# with all 1,110 numbers up to three digits would fill an eighth of an 8k list with them.
_DIGIT = re.compile(r" ?\d", re.UNICODE)


def required_ids(target: Target) -> dict[str, set[int]]:
    """Return the ids of each class that are always included.

    Returns:
        Class -> ids below the target's vocabulary size; a class may be empty, and an id may be in
        several. Classes: "stop", "special" (without those kept for later), "bytes", "digits",
        "whitespace", "chat template".
    """
    classes = {
        "stop": stop_ids(target),
        "special": {
            index
            for index in target.added_ids
            if not _KEPT_FOR_LATER.fullmatch(_text(target, index))
        },
        "bytes": set(),
        "digits": set(),
        "whitespace": set(),
        "chat template": set(_tokens_of(target, [*_template_literals(target), *_MARKERS])),
    }
    for index, token in enumerate(target.token_bytes):
        if token is None or index in target.added_ids:
            continue
        if len(token) == 1:
            classes["bytes"].add(index)
        text = _text(target, index)
        if _DIGIT.fullmatch(text):
            classes["digits"].add(index)
        if text.isspace():
            classes["whitespace"].add(index)
    return {
        name: {index for index in ids if 0 <= index < target.vocab_size}
        for name, ids in classes.items()
    }


def _text(target: Target, index: int) -> str:
    return (target.token_bytes[index] or b"").decode("utf-8", "replace")


def stop_ids(target: Target) -> set[int]:
    """Return every id that may end an answer: of the tokenizer, model and generation configs."""
    found: set[int] = set()
    for value in (
        target.generation_config.get("eos_token_id"),
        target.config.get("eos_token_id"),
        target.tokenizer.eos_token_id,
    ):
        found.update(value if isinstance(value, list) else [] if value is None else [value])
    return found


def _template_literals(target: Target) -> Iterable[str]:
    """Texts that the chat template can write: role names, turn markers, tool instructions.

    The template is split by Jinja's lexer and not rendered, so that all its branches count.
    """
    template = target.tokenizer.chat_template
    templates = template.values() if isinstance(template, Mapping) else [template]
    for source in templates:
        if not source:
            continue
        # The settings that transformers renders templates with: they decide which blanks remain.
        environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
        for _line, kind, value in environment.lex(source):
            if kind == "data" and value.strip():
                yield value
            elif kind == "string":
                # As jinja2's parser reads a literal, which unlike Python's may span lines.
                yield value[1:-1].encode("ascii", "backslashreplace").decode("unicode-escape")


def _tokens_of(target: Target, texts: Iterable[str]) -> Iterable[int]:
    for text in texts:
        yield from target.encode(text)


def union(classes: Mapping[str, set[int]]) -> set[int]:
    """Return the ids of all classes."""
    result: set[Any] = set()
    return result.union(*classes.values())
