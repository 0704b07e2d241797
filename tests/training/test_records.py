"""Records -> documents: which tokens count, what is joined, what is refused.

Alone: pytest tests/training/test_records.py
"""

import json

import numpy as np
import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.training import records
from fastmtp_sglang.vocabulary.target import load_target

MESSAGES = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello you"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]


@pytest.fixture(scope="module")
def target():
    return load_target(str(SMOLLM2.checkpoint()))


@pytest.fixture
def read(target):
    """Documents of record files; conversations that are left out are an error, unless listed."""

    def read(*paths, target=target, max_length=1000, skipped=None):
        lines = [] if skipped is None else skipped
        found = records.documents(records.read_turns(paths, target, lines.append), max_length)
        assert skipped is not None or not lines
        return list(found)

    return read


def turn(conversation, prompt, answer):
    return records.Turn(conversation, np.array(prompt, np.int32), np.array(answer, np.int32))


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def counted(document):
    return document.input_ids[document.counted].tolist()


def test_only_answers_count(tmp_path, read):
    path = write(tmp_path / "a.jsonl", {"id": "x", "prompt_ids": [1, 2], "answer_ids": [3, 4]})
    (document,) = read(path)
    assert document.input_ids.tolist() == [1, 2, 3, 4]
    assert counted(document) == [3, 4]


def test_turns_that_continue_a_conversation_are_joined():
    first = turn("c", [1, 2], [3, 4])
    second = turn("c", [1, 2, 3, 4, 5, 6], [7])
    elsewhere = turn("d", [1, 2, 3, 4, 5, 6, 7, 8], [9])
    rewritten = turn("d", [1, 2, 0, 4, 5], [6])
    joined = records.documents([first, second, elsewhere, rewritten], 100)
    assert [document.input_ids.tolist() for document in joined] == [
        [1, 2, 3, 4, 5, 6, 7],
        [1, 2, 3, 4, 5, 6, 7, 8, 9],
        [1, 2, 0, 4, 5, 6],
    ]
    assert [counted(document) for document in joined] == [[3, 4, 7], [9], [6]]


def test_long_documents_lose_their_end_and_empty_ones_go():
    turns = [turn("a", [1, 2], [3, 4, 5]), turn("b", [1, 2, 3, 4], [5])]
    (document,) = records.documents(turns, 4)
    assert document.input_ids.tolist() == [1, 2, 3, 4]
    assert counted(document) == [3, 4]
    with pytest.raises(FastMTPError, match="no record holds an answer token within the first 2"):
        records.documents(turns, 2)


def test_a_conversation_of_two_answers_is_one_document(tmp_path, read, target):
    (document,) = read(write(tmp_path / "m.jsonl", {"id": "m", "messages": MESSAGES}))
    text = target.tokenizer.decode(counted(document))
    assert text == "Hello you<|im_end|>See you<|im_end|>"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"messages": []}, "has no text or message in 'messages'"),
        ({"messages": MESSAGES[1:]}, "begins with the assistant"),
        ({"messages": MESSAGES[:1]}, "has no message of the assistant"),
        ({"prompt": "Hi"}, "has no message of the assistant"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": None}]}, "content is no text"),
        ({"messages": [MESSAGES[0], {"role": "judge", "content": "x"}]}, "the role 'judge'"),
        ({"messages": MESSAGES, "tools": "x"}, "has tools that are no list"),
        (
            {"messages": [MESSAGES[0], {"role": "assistant", "tool_calls": [{"name": "f"}]}]},
            "has tool_calls that are no",
        ),
    ],
)
def test_conversations_that_cannot_be_trained_on_are_left_out_by_name(
    tmp_path, read, record, reason
):
    good = {"id": None, "messages": MESSAGES[:2]}
    skipped = []
    found = read(write(tmp_path / "c.jsonl", good, record, good), skipped=skipped)
    assert len(found) == 2  # "id": null names nothing: they are two conversations
    (line,) = skipped
    assert "c.jsonl, line 2: the conversation" in line
    assert reason in line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "is no record"),
        ('{"text": "a"}', "Expected prompt_ids and answer_ids, or messages"),
        ('{"prompt_ids": [1], "answer_ids": ["a"]}', "must be lists of token ids"),
        ('{"prompt_ids": [1], "answer_ids": [-1]}', "must be lists of token ids"),
        ('{"prompt_ids": [1], "answer_ids": 1}', "must be lists of token ids"),
        ('{"prompt_ids": [1], "answer_ids": [49152]}', "49152 is outside the target's vocabulary"),
        ('{"prompt_ids": [1]}', "answer_ids"),
    ],
)
def test_broken_lines_are_named(tmp_path, read, line, message):
    path = tmp_path / "b.jsonl"
    path.write_text('{"id": 1, "prompt_ids": [1], "answer_ids": [2]}\n' + line + "\n")
    with pytest.raises(FastMTPError, match=rf"b\.jsonl, line 2.*{message}"):
        read(path)


def test_held_out_share_is_stable_and_about_right():
    names = [f"self/{i}/0" for i in range(2000)]
    held = [name for name in names if records.is_held_out(name, 0.1)]
    assert 150 < len(held) < 250
    assert held == [name for name in names if records.is_held_out(name, 0.1)]
    assert set(held) < {name for name in names if records.is_held_out(name, 0.2)}
