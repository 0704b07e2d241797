"""Prompts: the template applied once, BOS once, and where the target may write the user's words.

Alone: pytest tests/distill/test_chat.py
"""

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from fastmtp_sglang.distill.chat import ChatTemplate, PlainText, prompting
from fastmtp_sglang.distill.records import Message
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.catalog import SMOLLM2

TALK = [
    Message(role="user", content="Hello"),
    Message(role="assistant", content="Hi!"),
    Message(role="user", content="Name a fruit."),
]
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}\n\n"
    "{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture
def tokenizer_with():
    """The real tokenizer with another template, optionally adding BOS as Llama's does."""

    def make(template: str | None, *, adds_bos: bool = False):
        tokenizer = AutoTokenizer.from_pretrained(SMOLLM2.checkpoint())
        tokenizer.chat_template = template
        if adds_bos:
            tokenizer.bos_token = "<|endoftext|>"
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
            )
            assert tokenizer("a")["input_ids"][0] == 0
        return tokenizer

    return make


def test_prompt_is_what_serving_renders(chat, target):
    expected = target.tokenizer.apply_chat_template(
        [message.model_dump() for message in TALK], add_generation_prompt=True, return_dict=False
    )
    assert chat.prompt_ids(TALK) == expected
    text = target.tokenizer.decode(expected)
    assert text.count("<|im_start|>assistant\n") == 2
    assert text.count("<|im_start|>system") == 1
    assert text.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("writes_bos", [True, False])
def test_bos_is_the_templates_alone(tokenizer_with, writes_bos, adds_bos):
    """As SGLang's chat endpoint, `fastmtp train` and `bench`: `apply_chat_template`."""
    template = LLAMA3 if writes_bos else LLAMA3.replace("{{ bos_token }}", "")
    tokenizer = tokenizer_with(template, adds_bos=adds_bos)
    tokenizer.bos_token = "<|endoftext|>"
    ids = ChatTemplate(tokenizer, "m").prompt_ids(TALK)
    assert ids.count(0) == int(writes_bos)
    messages = [message.model_dump() for message in TALK]
    assert ids == tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


def test_user_turn_begins_where_the_users_words_do(chat):
    where = chat.user_turn([])
    whole = chat.prompt_ids([Message(role="user", content="Hello")])
    assert whole[: len(where.prefix_ids)] == where.prefix_ids
    assert chat.text(where.prefix_ids).endswith("user\n")
    assert where.stop_ids == [2]
    assert where.stop_text is None


def test_user_turn_goes_on_with_given_words(chat, target):
    where = chat.user_turn([], "How do plants")
    assert where.prefix_ids == chat.user_turn([]).prefix_ids
    assert where.start_ids == target.encode("How do plants")
    assert chat.text(where.start_ids + target.encode(" drink?")) == "How do plants drink?"


def test_later_user_turn_holds_the_history(chat):
    where = chat.user_turn(TALK[:2])
    whole = chat.prompt_ids(TALK)
    assert whole[: len(where.prefix_ids)] == where.prefix_ids


def test_template_that_ends_a_turn_with_text(tokenizer_with):
    where = ChatTemplate(tokenizer_with(INST), "m").user_turn([])
    assert where.stop_ids == []
    assert where.stop_text == "[/INST]"


def test_control_tokens_are_seen(chat, target):
    assert chat.has_special([10, 2])
    assert not chat.has_special(target.encode("plain text"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "where a user"),
        ("fixed text", "where a user"),
    ],
)
def test_templates_that_cannot_be_used(tokenizer_with, template, reason):
    with pytest.raises(FastMTPError, match=reason):
        ChatTemplate(tokenizer_with(template), "m").user_turn([])


@pytest.mark.parametrize("adds_bos", [True, False])
def test_without_a_template_the_target_goes_on_with_a_text(tokenizer_with, adds_bos):
    tokenizer = tokenizer_with(None, adds_bos=adds_bos)
    chat = prompting(tokenizer, "m")
    assert isinstance(chat, PlainText)
    text = tokenizer.encode("Hello\n\nHi!\n\nName a fruit.", add_special_tokens=False)
    assert chat.prompt_ids(TALK) == [0] * adds_bos + text


def test_without_a_template_the_target_writes_first_lines(tokenizer_with):
    tokenizer = tokenizer_with(None, adds_bos=True)
    chat = prompting(tokenizer, "m")
    where = chat.user_turn([], "Der Wald")
    assert where.prefix_ids == [0]
    assert where.start_ids == tokenizer.encode("Der Wald", add_special_tokens=False)
    assert (where.stop_ids, where.stop_text) == ([], "\n")
    later = chat.user_turn(TALK[:2])
    assert tokenizer.decode(later.prefix_ids) == "<|endoftext|>Hello\n\nHi!\n\n"


def test_nothing_to_go_on_from(tokenizer_with):
    chat = prompting(tokenizer_with(None), "m")
    with pytest.raises(FastMTPError, match=r"puts no token before a text.*--prompt-starts"):
        chat.user_turn([])
    assert chat.user_turn([], "Once").prefix_ids == []


def test_template_that_refuses_a_role(tokenizer_with):
    chat = ChatTemplate(tokenizer_with(INST), "m")
    with pytest.raises(FastMTPError, match=r"refuses.*system, user.*no system role"):
        chat.prompt_ids([Message(role="system", content="s"), TALK[0]])
