"""Throughput prompts cut from real text to length.

Alone: pytest tests/benchmarks/test_shapes.py
"""

import pytest

from fastmtp_benchmarks.shapes import parse_shape, shape_task
from fastmtp_benchmarks.task import Conversation, Task
from fastmtp_sglang.errors import FastMTPError


class Words:
    """A tokenizer of words."""

    def encode(self, text, add_special_tokens):
        return text.split()

    def decode(self, ids):
        return " ".join(ids)


def test_throughput_prompts_have_their_length_and_no_common_prefix():
    texts = [Task("t", tuple(Conversation(str(i), (f"a{i} b{i} c{i}",)) for i in range(10)))]
    task = shape_task(parse_shape("7x5"), 6, Words(), texts)
    prompts = [conversation.turns[0].split() for conversation in task.conversations]
    assert [len(prompt) for prompt in prompts] == [7] * 6
    assert len({prompt[0] for prompt in prompts}) == 6
    assert {conversation.output_length for conversation in task.conversations} == {5}
    assert task.name == "throughput 7x5"
    assert len(shape_task((100, 5), 6, Words(), texts).conversations[5].turns[0].split()) == 100


@pytest.mark.parametrize("text", ["7", "0x5", "7x", "7x5x3", "axb"])
def test_bad_shapes(text):
    with pytest.raises(FastMTPError, match=f"--shape {text}: give prompt tokens x output tokens"):
        parse_shape(text)


def test_shapes_need_text():
    with pytest.raises(FastMTPError, match="--shape: there is no text"):
        shape_task((7, 5), 6, Words(), [])
