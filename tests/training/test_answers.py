"""Which tokens of a conversation the assistant wrote, for templates that say it and that do not.

Alone: pytest tests/training/test_answers.py
"""

import pytest
from transformers import AutoTokenizer

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.conversations import BadRowError, read_chat
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.training.answers import answered

MESSAGES = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello you"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
]
SHAREGPT = [
    {"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in MESSAGES
]
PARTS = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in MESSAGES]
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}"
    "<|im_end|>{% endif %}\n{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(SMOLLM2.checkpoint())


@pytest.fixture
def with_template(tokenizer, monkeypatch):
    """The tokenizer with another chat template."""

    def make(template):
        monkeypatch.setattr(tokenizer, "chat_template", template)
        return tokenizer

    return make


def find(record, tokenizer):
    """The ids of a record, and the text of each of its answers."""
    ids, spans = answered(read_chat(record), tokenizer, "m.jsonl, line 1")
    return ids, [tokenizer.decode(ids[begin:end]) for begin, end in spans]


@pytest.mark.parametrize(
    "record",
    [{"messages": MESSAGES}, {"conversations": SHAREGPT}, {"messages": PARTS}],
    ids=["messages", "ShareGPT", "parts"],
)
def test_turn_by_turn_without_help_of_the_template(tokenizer, record):
    """Each answer with its stop token, not the line break that the template puts behind it."""
    ids, answers = find(record, tokenizer)
    assert answers == ["Hello you<|im_end|>", "See you<|im_end|>"]
    whole = tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=False)
    assert ids == whole[: len(ids)]
    assert whole.count(tokenizer.bos_token_id) == ids.count(tokenizer.bos_token_id)


def test_what_comes_after_the_last_answer_is_left_out(tokenizer):
    asked_again = {"messages": [*MESSAGES, {"role": "user", "content": "And?"}]}
    assert find(asked_again, tokenizer) == find({"messages": MESSAGES}, tokenizer)


@pytest.mark.parametrize(
    "template", [GENERATION, GENERATION.replace("{% generation", "{%- generation")]
)
def test_by_a_template_that_says_generation(with_template, template):
    _, answers = find({"messages": MESSAGES}, with_template(template))
    assert answers == ["Hello you<|im_end|>", "See you<|im_end|>"]


def test_both_ways_find_the_same(tokenizer, with_template):
    """The real template with the block put into it, against the real template."""
    expected_ids, expected = find({"messages": MESSAGES}, tokenizer)
    said = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    marked = (
        "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ message['content'] + '<|im_end|>' }}{% endif %}{{'\n'}}"
    )
    template = tokenizer.chat_template
    assert said in template
    ids, answers = find({"messages": MESSAGES}, with_template(template.replace(said, marked)))
    assert answers == expected
    assert ids[: len(expected_ids)] == expected_ids


def test_tools_and_their_calls_are_rendered_by_the_template(with_template):
    """Arguments reach the template as an object, and the tools reach it at all."""
    tokenizer = with_template(
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
    ids, answers = find(record, tokenizer)
    assert answers == ["weather(Bonn)<|im_end|>", "No.<|im_end|>"]
    assert tokenizer.decode(ids).startswith("tools: weather<")


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (MESSAGES[1:], "begins with the assistant"),
        ([{"role": "system", "content": "s"}, *MESSAGES[1:]], "begins with the assistant"),
        (MESSAGES[:1], "has no message of the assistant"),
        ([{"role": "system", "content": "s"}, *MESSAGES], "by the chat template: no system"),
    ],
)
def test_conversations_with_nothing_to_learn(with_template, messages, reason):
    strict = with_template(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(BadRowError, match=reason):
        find({"messages": messages}, strict)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        # The last turn is rendered otherwise than an earlier one.
        (
            "{% for m in messages %}{{ 'last ' if loop.last else '' }}{{ m.content }}<|im_end|>"
            "{% endfor %}",
            "cannot be derived",
        ),
        # An earlier answer is rendered otherwise once another turn follows (reasoning is dropped).
        (
            "{% for m in messages %}{{ '' if loop.index < 3 and messages | length > 2 "
            "else m.content }}<|im_end|>{% endfor %}",
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
    ids=["rewrites", "drops", "no stop token", "empty mask", "no template"],
)
def test_a_mask_that_cannot_be_derived_is_an_error(with_template, template, message):
    """Of the whole run: every other conversation would be masked as wrongly."""
    with pytest.raises(FastMTPError, match=rf"^m\.jsonl, line 1.*{message}"):
        find({"messages": MESSAGES}, with_template(template))
