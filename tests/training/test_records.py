"""Records -> documents: which tokens count, what is joined, what is refused.

Alone: pytest tests/training/test_records.py
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from transformers import AutoTokenizer

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

SHAREGPT = [
    {"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in MESSAGES
]


@pytest.fixture(scope="module")
def target():
    return load_target(str(SMOLLM2.checkpoint()))


@pytest.fixture(scope="module")
def tokenizer(target):
    return target.tokenizer


@pytest.fixture
def with_template(target):
    """The target with another chat template."""

    def make(template):
        tokenizer = AutoTokenizer.from_pretrained(SMOLLM2.checkpoint())
        tokenizer.chat_template = template
        return replace(target, tokenizer=tokenizer)

    return make


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


@pytest.mark.parametrize(
    "record",
    [
        {"messages": MESSAGES},
        {"conversations": SHAREGPT},
        {
            "messages": [
                {**m, "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES
            ]
        },
    ],
    ids=["messages", "ShareGPT", "parts"],
)
def test_messages_are_masked_turn_by_turn_without_help_of_the_template(
    tmp_path, read, tokenizer, record
):
    (document,) = read(write(tmp_path / "m.jsonl", {"id": "m", **record}))
    # Each answer with its stop token, not the line break that the template puts behind it.
    assert tokenizer.decode(counted(document)) == "Hello you<|im_end|>See you<|im_end|>"
    whole = tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
    assert document.input_ids.tolist() == whole[: len(document.input_ids)]
    assert whole.count(tokenizer.bos_token_id) == document.input_ids.tolist().count(1)


def test_messages_are_masked_by_a_template_that_says_generation(
    tmp_path, read, tokenizer, with_template
):
    marked = with_template(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}"
        "<|im_end|>{% endif %}\n{% endfor %}"
    )
    path = write(tmp_path / "m.jsonl", {"id": "m", "messages": MESSAGES})
    (document,) = read(path, target=marked)
    assert tokenizer.decode(counted(document)) == "Hello you<|im_end|>See you<|im_end|>"


def test_tools_and_their_calls_are_rendered_by_the_template(
    tmp_path, read, tokenizer, with_template
):
    """Arguments reach the template as an object, and the tools reach it at all."""
    template = (
        "{% if tools %}tools: {% for t in tools %}{{ t.function.name }}{% endfor %}\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.city }})"
        "{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = {"id": "1", "type": "function"}
    call["function"] = {"name": "weather", "arguments": '{"city": "Bonn"}'}
    record = {
        "tools": [{"type": "function", "function": {"name": "weather"}}],
        "messages": [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "no"},
            {"role": "assistant", "content": "No."},
        ],
    }
    (document,) = read(write(tmp_path / "t.jsonl", record), target=with_template(template))
    assert tokenizer.decode(counted(document)) == "weather(Bonn)<|im_end|>No.<|im_end|>"
    assert tokenizer.decode(document.input_ids).startswith("tools: weather<")


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


def test_a_conversation_that_the_template_refuses_is_left_out(tmp_path, read, with_template):
    strict = with_template(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    asked = [{"role": "system", "content": "s"}, *MESSAGES]
    skipped = []
    path = write(tmp_path / "c.jsonl", {"messages": asked}, {"messages": MESSAGES})
    assert len(read(path, target=strict, skipped=skipped)) == 1
    assert "line 1: the conversation is not taken by the chat template: no system" in skipped[0]


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # The last turn is rendered otherwise than an earlier one.
        (
            "{% for m in messages %}{{ 'last ' if loop.last else '' }}{{ m.content }}<|im_end|>"
            "{% endfor %}",
            "cannot be derived",
        ),
        # No end of a turn.
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "cannot be derived"),
        # The block is there, but no token of these messages lies in it.
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}"
            "{% if false %}{% generation %}{% endgeneration %}{% endif %}",
            "marks no token",
        ),
        (
            None,
            "holds messages, and the target's tokenizer has no chat template.*instruction-tuned",
        ),
    ],
    ids=["rewrites", "no stop token", "empty mask", "no template"],
)
def test_a_mask_that_cannot_be_derived_is_an_error(
    tmp_path, read, with_template, template, message
):
    path = write(tmp_path / "m.jsonl", {"id": "m", "messages": MESSAGES})
    with pytest.raises(FastMTPError, match=rf"m\.jsonl, line 1.*{message}"):
        read(path, target=with_template(template))


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


def test_missing_data(tmp_path, read):
    with pytest.raises(FastMTPError, match="does not exist"):
        read(tmp_path / "none")
    with pytest.raises(FastMTPError, match="holds no"):
        read(tmp_path)


def test_held_out_share_is_stable_and_about_right():
    names = [f"self/{i}/0" for i in range(2000)]
    held = [name for name in names if records.is_held_out(name, 0.1)]
    assert 150 < len(held) < 250
    assert held == [name for name in names if records.is_held_out(name, 0.1)]
    assert set(held) < {name for name in names if records.is_held_out(name, 0.2)}
