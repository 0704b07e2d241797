"""What a vocabulary must know of its target: the tokenizer, the rows of the head, and costs.

Only files of the model's directory are read (tokenizer, `config.json`, `generation_config.json`),
no weights, and nothing is downloaded. transformers is imported when a target is loaded.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models import catalog
from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint

_SPM_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPM_SPACE = "\u2581"
# Multimodal configurations keep the language model's fields one level down.
_NESTED_CONFIGS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, eq=False)
class Target:
    """A target model's tokenizer and configuration.

    Attributes:
        path: The directory.
        tokenizer: A transformers tokenizer.
        vocab_size: Rows of the head.
        config: `config.json` of the language model, {} for a bare tokenizer directory.
        generation_config: `generation_config.json`, {} where there is none.
        fingerprint: See `fingerprint.py`.
        added_ids: Special and added tokens.
    """

    path: Path
    tokenizer: Any
    vocab_size: int
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    fingerprint: str
    added_ids: frozenset[int]

    @cached_property
    def token_bytes(self) -> list[bytes | None]:
        """The bytes of every token by id; None for ids that the tokenizer does not have."""
        return token_bytes(self.tokenizer.get_vocab(), self.added_ids)

    def encode(self, text: str) -> list[int]:
        """Tokenize text without adding special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False)


def load_target(model: str, *, vocab_size: int | None = None) -> Target:
    """Load the tokenizer and configuration of a model.

    Args:
        model: A model or tokenizer directory, or the name of a built-in model.
        vocab_size: Rows of the head, for a directory without `config.json`.

    Raises:
        FastMTPError: No such directory, no tokenizer in it, or no vocabulary size to be found.
    """
    path = catalog.directory("--model", model)
    config = _language_model_config(_read_json(path / "config.json"))
    rows = config.get("vocab_size", vocab_size)
    if rows is None:
        raise FastMTPError(
            f"--model {model}: {path} has no config.json with a vocab_size, and the tokenizer's "
            "own size may differ from the rows of the head. Give the model's directory, or "
            "--vocab-size with the model's config.vocab_size."
        )
    if vocab_size is not None and rows != vocab_size:
        raise FastMTPError(
            f"--vocab-size {vocab_size}: {path / 'config.json'} says {rows}. Leave the option out."
        )
    tokenizer = _load_tokenizer(path, model)
    return Target(
        path=path,
        tokenizer=tokenizer,
        vocab_size=int(rows),
        config=config,
        generation_config=_read_json(path / "generation_config.json"),
        fingerprint=tokenizer_fingerprint(tokenizer),
        added_ids=frozenset(tokenizer.get_added_vocab().values())
        | frozenset(tokenizer.all_special_ids),
    )


def token_bytes(vocabulary: Mapping[str, int], added_ids: frozenset[int]) -> list[bytes | None]:
    """Turn the spelling of tokens in a vocabulary into the bytes that they stand for.

    Three spellings exist and are told apart by the tokens themselves: sentencepiece writes a space
    as U+2581 and single bytes as <0xE4>; byte-level BPE (GPT-2, Llama 3, Qwen, tekken) writes every
    byte as one of 256 printable characters; others are plain text.

    Args:
        vocabulary: token -> id as `get_vocab()` gives it, at least one entry.
        added_ids: Special and added tokens, which are always spelled as plain text.

    Returns:
        Bytes by id, as long as the highest id; None where no token has the id.
    """
    ordinary = [token for token, index in vocabulary.items() if index not in added_ids]
    decode = _spelling(ordinary)
    tokens: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for token, index in vocabulary.items():
        # Vocabularies may hold lone surrogates; they are no text and only need to stay distinct.
        plain = token.encode("utf-8", "surrogatepass")
        tokens[index] = plain if index in added_ids else decode(token)
    return tokens


def _spelling(ordinary: list[str]):
    if any(token.startswith(_SPM_SPACE) for token in ordinary):
        return _decode_sentencepiece
    byte_of = byte_alphabet()
    # A space or a letter of another script cannot occur inside a byte-level token.
    if all(character in byte_of for token in ordinary for character in token):
        return lambda token: bytes(byte_of[character] for character in token)
    return lambda token: token.encode("utf-8", "surrogatepass")


def _decode_sentencepiece(token: str) -> bytes:
    byte = _SPM_BYTE.fullmatch(token)
    if byte:
        return bytes([int(byte[1], 16)])
    return token.replace(_SPM_SPACE, " ").encode("utf-8", "surrogatepass")


def byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of GPT-2's byte-level alphabet stands for.

    Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100 onwards
    (`bytes_to_unicode` in https://github.com/openai/gpt-2/blob/master/src/encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


def _load_tokenizer(path: Path, model: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises anything from KeyError to ImportError here
        raise FastMTPError(
            f"--model {model}: transformers cannot load a tokenizer from {path} "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''})."
        ) from error


def _language_model_config(config: dict[str, Any]) -> dict[str, Any]:
    for name in _NESTED_CONFIGS:
        if isinstance(config.get(name), dict) and "vocab_size" in config[name]:
            # Stop tokens are often given only at the top level.
            return config | config[name]
    return config


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FastMTPError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise FastMTPError(f"{path}: holds a JSON {type(content).__name__}, not an object.")
    return content
