"""Messages as token ids: by the template where there is one, else as a text with BOS once.

Alone: pytest tests/models/test_prompting.py
"""

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.models.prompting import has_chat_template, prompt_ids, text_ids

MESSAGES = [
    {"role": "system", "content": "A poem."},
    {"role": "user", "content": "The sea,"},
]


@pytest.fixture
def tokenizer():
    """SmolLM2's, putting BOS (id 0) before a text as Gemma's does."""
    made = AutoTokenizer.from_pretrained(SMOLLM2.checkpoint())
    made.bos_token = "<|endoftext|>"
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    return made


def test_with_a_template(tokenizer):
    assert has_chat_template(tokenizer)
    ids = prompt_ids(tokenizer, MESSAGES)
    assert tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
    assert 0 not in ids


def test_without_one_messages_are_a_text(tokenizer):
    tokenizer.chat_template = None
    assert not has_chat_template(tokenizer)
    ids = prompt_ids(tokenizer, MESSAGES)
    assert ids == [0, *tokenizer.encode("A poem.\n\nThe sea,", add_special_tokens=False)]


def test_bos_is_there_once(tokenizer):
    expected = text_ids(tokenizer, "Hello")
    assert expected[0] == 0
    assert text_ids(tokenizer, "<|endoftext|>Hello") == expected
    # What stands inside a text stays.
    assert text_ids(tokenizer, "a<|endoftext|>b").count(0) == 2


def test_a_tokenizer_that_puts_nothing_before_a_text():
    plain = AutoTokenizer.from_pretrained(SMOLLM2.checkpoint())
    assert text_ids(plain, "Hello") == plain.encode("Hello", add_special_tokens=False)
