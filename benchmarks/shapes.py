"""Throughput tasks of a given size: so many prompt tokens in, exactly so many out.

The prompts are real text cut to length, since random tokens are drafted as no text ever is: the
words of the given tasks, end to end, each conversation starting somewhere else.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastmtp_benchmarks.task import Conversation, Task
from fastmtp_sglang.errors import FastMTPError

_SHAPE = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")


def parse_shape(text: str) -> tuple[int, int]:
    """Return (prompt tokens, output tokens) of `INxOUT`; raises FastMTPError."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise FastMTPError(f"--shape {text}: give prompt tokens x output tokens, such as 1024x256")
    return int(match[1]), int(match[2])


def shape_task(shape: tuple[int, int], count: int, tokenizer: Any, texts: Sequence[Task]) -> Task:
    """Build `count` conversations of one turn each.

    Args:
        shape: Prompt tokens (the chat template adds a few) and output tokens.
        count: Number of conversations.
        tokenizer: Of the served model.
        texts: Tasks whose user turns give the text.

    Raises:
        FastMTPError: There is no text.
    """
    length, output_length = shape
    pool: list[int] = []
    for task in texts:
        for conversation in task.conversations:
            text = "\n\n".join(conversation.turns) + "\n\n"
            pool += tokenizer.encode(text, add_special_tokens=False)
    if not pool:
        raise FastMTPError(
            "--shape: there is no text to cut prompts from: give a --task, or --shape-text FILE"
        )
    # Starts spread over the pool, so that no two prompts share a prefix that the cache would hold.
    stride = max(1, len(pool) // count)
    pool = pool * (1 + (length + stride * count) // len(pool))
    name = f"throughput {length}x{output_length}"
    return Task(
        name,
        tuple(
            Conversation(
                id=f"{name}/{number}",
                turns=(tokenizer.decode(pool[number * stride : number * stride + length]),),
                output_length=output_length,
            )
            for number in range(count)
        ),
    )
