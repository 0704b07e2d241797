"""Records -> documents: which tokens count, what is joined, what is refused.

Alone: pytest tests/training/test_records.py
"""

import json

import pytest
from transformers import AutoTokenizer

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models import smollm2
from fastmtp_sglang.training.records import Turn, documents, is_held_out, read_turns

MESSAGES = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello you"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(smollm2.checkpoint())


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def counted(document):
    return document.input_ids[document.counted].tolist()


def test_only_answers_count(tmp_path):
    path = write(tmp_path / "a.jsonl", {"id": "x", "prompt_ids": [1, 2], "answer_ids": [3, 4]})
    (document,) = documents(read_turns([path], None), 100)
    assert document.input_ids.tolist() == [1, 2, 3, 4]
    assert counted(document) == [3, 4]


def test_turns_that_continue_a_conversation_are_joined():
    first = Turn("c", [1, 2], [3, 4])
    second = Turn("c", [1, 2, 3, 4, 5, 6], [7])
    elsewhere = Turn("d", [1, 2, 3, 4, 5, 6, 7, 8], [9])
    rewritten = Turn("d", [1, 2, 0, 4, 5], [6])
    joined = documents([first, second, elsewhere, rewritten], 100)
    assert [document.input_ids.tolist() for document in joined] == [
        [1, 2, 3, 4, 5, 6, 7],
        [1, 2, 3, 4, 5, 6, 7, 8, 9],
        [1, 2, 0, 4, 5, 6],
    ]
    assert [counted(document) for document in joined] == [[3, 4, 7], [9], [6]]


def test_long_documents_lose_their_end_and_empty_ones_go():
    turns = [Turn("a", [1, 2], [3, 4, 5]), Turn("b", [1, 2, 3, 4], [5])]
    (document,) = documents(turns, 4)
    assert document.input_ids.tolist() == [1, 2, 3, 4]
    with pytest.raises(FastMTPError, match="no record holds an answer token within the first 2"):
        documents(turns, 2)


def test_messages_are_masked_turn_by_turn_without_help_of_the_template(tmp_path, tokenizer):
    path = write(tmp_path / "m.jsonl", {"id": "m", "messages": MESSAGES})
    (document,) = documents(read_turns([path], tokenizer), 1000)
    # Each answer with its stop token, not the line break that the template puts behind it.
    assert tokenizer.decode(counted(document)) == "Hello you<|im_end|>See you<|im_end|>"
    whole = tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
    assert document.input_ids.tolist() == whole[: len(document.input_ids)]
    assert whole.count(tokenizer.bos_token_id) == document.input_ids.tolist().count(1)


def test_messages_are_masked_by_a_template_that_says_generation(tmp_path, tokenizer):
    marked = AutoTokenizer.from_pretrained(smollm2.checkpoint())
    marked.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}"
        "<|im_end|>{% endif %}\n{% endfor %}"
    )
    path = write(tmp_path / "m.jsonl", {"id": "m", "messages": MESSAGES})
    (document,) = documents(read_turns([path], marked), 1000)
    assert tokenizer.decode(counted(document)) == "Hello you<|im_end|>See you<|im_end|>"


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
    ],
    ids=["rewrites", "no stop token", "empty mask"],
)
def test_a_mask_that_cannot_be_derived_is_an_error(tmp_path, template, message):
    tokenizer = AutoTokenizer.from_pretrained(smollm2.checkpoint())
    tokenizer.chat_template = template
    path = write(tmp_path / "m.jsonl", {"id": "m", "messages": MESSAGES})
    with pytest.raises(FastMTPError, match=rf"m\.jsonl, line 1.*{message}"):
        list(read_turns([path], tokenizer))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "is no record"),
        ('{"text": "a"}', "Expected prompt_ids and answer_ids, or messages"),
        ('{"prompt_ids": [1], "answer_ids": ["a"]}', "must be lists of token ids"),
        ('{"prompt_ids": [1], "answer_ids": [-1]}', "must be lists of token ids"),
        ('{"prompt_ids": [1]}', "answer_ids"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    path = tmp_path / "b.jsonl"
    path.write_text('{"id": 1, "prompt_ids": [1], "answer_ids": [2]}\n' + line + "\n")
    with pytest.raises(FastMTPError, match=rf"b\.jsonl, line 2.*{message}"):
        list(read_turns([path], None))


def test_missing_data(tmp_path):
    with pytest.raises(FastMTPError, match="does not exist"):
        list(read_turns([tmp_path / "none"], None))
    with pytest.raises(FastMTPError, match="holds no"):
        list(read_turns([tmp_path], None))


def test_held_out_share_is_stable_and_about_right():
    names = [f"self/{i}/0" for i in range(2000)]
    held = [name for name in names if is_held_out(name, 0.1)]
    assert 150 < len(held) < 250
    assert held == [name for name in names if is_held_out(name, 0.1)]
    assert set(held) < {name for name in names if is_held_out(name, 0.2)}
