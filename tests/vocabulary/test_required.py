"""The ids that every list holds: one test a class, on the tiny target and on real tokenizers.

Run alone: pytest tests/vocabulary/test_required.py
"""

from dataclasses import replace

import pytest

from fastmtp_sglang.vocabulary.required import required_ids, stop_ids
from fastmtp_sglang.vocabulary.target import Target


def tokens(target: Target, name: str) -> set[bytes]:
    return {target.token_bytes[index] for index in required_ids(target)[name]}


def test_stop_tokens_of_tokenizer_model_and_generation(tiny: Target):
    # generation_config.json names 2 and 0, config.json and the tokenizer 2.
    assert stop_ids(tiny) == {0, 2}
    assert required_ids(tiny)["stop"] == {0, 2}
    assert stop_ids(replace(tiny, generation_config={}, config={"eos_token_id": [5]})) == {2, 5}


def test_special_and_added_tokens(tiny: Target):
    assert tokens(tiny, "special") == {
        b"<|endoftext|>",
        b"<|im_start|>",
        b"<|im_end|>",
        b"<think>",
        b"</think>",
    }


KEPT_FOR_LATER = [
    *("<unused0>", "<unused6241>", "[unused99]", "<extra_id_7>", "<|reserved_special_token_247|>"),
    *("<SPECIAL_20>", "<|placeholder1|>", "<|dummy_12|>", "<|extra_204|>", "[UNUSED_TOKEN_145]"),
    *(
        "<reserved_106>",
        "<|reserved003|>",
        "<\uff5cplace\u2581holder\u2581no\u25810\uff5c>",
        ">>UNUSED_0<<",
    ),
]
WRITTEN = [
    *("<h1>", "<|im_end|>", "</think>", "[multimodal]", "\n\n", "<start_of_turn>", "<|0.00|>"),
    *("<loc0001>", "unused7", "<unused>", "<|extra_info|>", "<special2go>"),
]


def with_added(target: Target, names: list[str], **fields) -> Target:
    """The target with more added tokens; ids from 800 on."""
    more = {800 + place: name.encode() for place, name in enumerate(names)}
    made = replace(target, vocab_size=900, added_ids=target.added_ids | more.keys(), **fields)
    tokens = [*target.token_bytes, *[None] * (900 - len(target.token_bytes))]
    made.__dict__["token_bytes"] = [more.get(index, token) for index, token in enumerate(tokens)]
    return made


def test_tokens_that_are_kept_for_later_are_left_out(tiny: Target):
    target = with_added(tiny, [*KEPT_FOR_LATER, *WRITTEN])
    written = {name.encode() for name in WRITTEN}
    assert tokens(target, "special") == tokens(tiny, "special") | written
    # Whatever else needs them not.
    every = set().union(*required_ids(target).values())
    assert not every & set(range(800, 800 + len(KEPT_FOR_LATER)))


def test_a_token_that_got_a_meaning_is_kept(tiny: Target):
    """A stop token of the model's, whatever its name."""
    target = with_added(tiny, KEPT_FOR_LATER, generation_config={"eos_token_id": [2, 801]})
    assert 801 in required_ids(target)["stop"]


def test_every_single_byte(tiny: Target):
    assert tokens(tiny, "bytes") == {bytes([byte]) for byte in range(256)}


def test_digits(tiny: Target):
    digits = tokens(tiny, "digits")
    assert {b"%d" % digit for digit in range(10)} <= digits
    assert {b" %d" % digit for digit in range(10)} <= digits
    assert not any(len(token.strip()) > 1 for token in digits)


def test_whitespace_runs(tiny: Target):
    every = {
        token
        for index, token in enumerate(tiny.token_bytes)
        if index not in tiny.added_ids and token.decode("utf-8", "replace").isspace()
    }
    assert tokens(tiny, "whitespace") == every
    assert {b" ", b"\n", b"\t"} < every
    assert any(len(token) > 2 for token in every)


def test_chat_template_tokens_of_all_branches(tiny: Target):
    found = required_ids(tiny)["chat template"]
    for text in ("role", "You may call functions.", "<|im_end|>\n", "<|im_start|>"):
        assert set(tiny.encode(text)) <= found, text
    # Names and statements of the template language are not text that the template writes.
    assert not set(tiny.encode("endfor")) - set(tiny.encode("for end")) & found


def test_named_templates(tiny: Target):
    class Several:
        chat_template = {"default": "hello", "tool_use": "{{ 'tool\\n' }}\n"}
        eos_token_id = None

        def get_vocab(self):
            return tiny.tokenizer.get_vocab()

        def encode(self, text, add_special_tokens):
            return tiny.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    found = required_ids(replace(tiny, tokenizer=Several()))["chat template"]
    assert set(tiny.encode("hello")) | set(tiny.encode("tool\n")) <= found


@pytest.mark.parametrize("text", ["<think>", "</think>", "<tool_call>", "</tool_call>"])
@pytest.mark.parametrize("name", ["tiny", "tekken", "smollm2_target"])
def test_thinking_and_tools_can_always_be_spelled(
    name: str, text: str, request: pytest.FixtureRequest
):
    target = request.getfixturevalue(name)
    classes = required_ids(target)
    assert set(target.encode(text)) <= set().union(*classes.values())


def test_ids_beyond_the_model_are_left_out(tiny: Target):
    classes = required_ids(replace(tiny, vocab_size=100))
    assert max(set().union(*classes.values())) < 100
    assert classes["bytes"]


def test_a_real_multilingual_tokenizer(tekken: Target):
    classes = required_ids(tekken)
    assert len(classes["bytes"]) == 256
    # The other 9xx of its 1,000 are <SPECIAL_20> and so on.
    assert {b"<s>", b"</s>", b"[INST]", b"[TOOL_CALLS]"} <= tokens(tekken, "special")
    assert len(classes["special"]) < 50
    assert {b"%d" % digit for digit in range(10)} <= tokens(tekken, "digits")
    assert "٣".encode() in tokens(tekken, "digits")
    assert len(classes["whitespace"]) > 100


def test_smollm2(smollm2_target: Target):
    assert tokens(smollm2_target, "stop") == {b"<|im_end|>"}
    assert b"<|im_start|>" in tokens(smollm2_target, "special")
    assert {b" assistant", b"system"} <= tokens(smollm2_target, "chat template")
