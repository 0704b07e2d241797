"""Reading a target: its tokenizer's bytes, its configuration, and what is refused.

Run alone: pytest tests/vocabulary/test_target.py
"""

import json
import shutil
from pathlib import Path

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.catalog import SMOLLM2
from fastmtp_sglang.vocabulary.target import Target, byte_alphabet, load_target, token_bytes


def test_byte_level_tokens():
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    spelled = "".join(
        next(character for character, value in alphabet.items() if value == byte)
        for byte in " é的".encode()
    )
    assert token_bytes({"a": 0, spelled: 1, "<|é的|>": 2}, frozenset({2})) == [
        b"a",
        " é的".encode(),
        "<|é的|>".encode(),
    ]


def test_sentencepiece_tokens():
    vocabulary = {"<s>": 0, "\u2581the": 1, "<0xE4>": 2, "的": 3, "\u2581\u2581": 4, "Ġ": 5}
    assert token_bytes(vocabulary, frozenset({0})) == [
        b"<s>",
        b" the",
        b"\xe4",
        "的".encode(),
        b"  ",
        "Ġ".encode(),
    ]


def test_plain_tokens_and_holes():
    assert token_bytes({"a b": 0, "é": 3}, frozenset()) == [b"a b", None, None, "é".encode()]


def test_tekken_bytes_are_those_of_its_own_file(tekken: Target, tekken_tokens):
    """transformers spells them in its own alphabet; the way back must be exact for all 130,072."""
    assert len(tekken.added_ids) == 1000
    assert tekken.token_bytes[1000:] == tekken_tokens[1000:]


@pytest.mark.parametrize("name", ["tiny", "tekken", "smollm2_target"])
def test_bytes_of_an_encoded_text_join_to_the_text(
    name: str, texts: dict[str, str], request: pytest.FixtureRequest
):
    target = request.getfixturevalue(name)
    for text in texts.values():
        assert b"".join(target.token_bytes[index] for index in target.encode(text)) == text.encode()


def test_a_model_directory(tiny: Target):
    assert tiny.vocab_size == 760
    assert len(tiny.token_bytes) == 697
    assert tiny.fingerprint.startswith("sha256:")
    assert {tiny.token_bytes[index] for index in tiny.added_ids} == {
        b"<|endoftext|>",
        b"<|im_start|>",
        b"<|im_end|>",
        b"<think>",
        b"</think>",
    }


def test_the_size_of_the_language_model_inside_a_multimodal_one(tmp_path: Path, tiny_folder: Path):
    folder = tmp_path / "vl"
    shutil.copytree(tiny_folder, folder)
    (folder / "config.json").write_text(
        json.dumps({"eos_token_id": 2, "text_config": {"vocab_size": 999, "hidden_size": 8}})
    )
    target = load_target(str(folder))
    assert target.vocab_size == 999
    assert target.config["eos_token_id"] == 2


def test_a_bare_tokenizer_needs_the_size_of_the_head(tmp_path: Path, tiny_folder: Path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(tiny_folder, folder)
    (folder / "config.json").unlink()
    with pytest.raises(FastMTPError, match=r"no config\.json with a vocab_size.*--vocab-size"):
        load_target(str(folder))
    assert load_target(str(folder), vocab_size=800).vocab_size == 800


def test_a_size_that_contradicts_the_model_is_refused(tiny_folder: Path):
    with pytest.raises(FastMTPError, match=r"--vocab-size 800: .* says 760"):
        load_target(str(tiny_folder), vocab_size=800)


def test_a_missing_directory_is_not_downloaded():
    with pytest.raises(FastMTPError, match=r"--model Qwen/Qwen3-8B: no such directory"):
        load_target("Qwen/Qwen3-8B")


def test_a_directory_without_a_tokenizer(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"vocab_size": 5}')
    with pytest.raises(FastMTPError, match="transformers cannot load a tokenizer"):
        load_target(str(tmp_path))


@pytest.mark.parametrize(("content", "message"), [("{", "not valid JSON"), ("[]", "JSON list")])
def test_a_broken_config(tmp_path: Path, content: str, message: str):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(FastMTPError, match=message):
        load_target(str(tmp_path))


def test_smollm2_is_the_embedded_model(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path):
    monkeypatch.setattr(SMOLLM2, "checkpoint", lambda: tiny_folder)
    assert load_target("smollm2").path == tiny_folder
