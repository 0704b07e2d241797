"""The fingerprint of a tokenizer: which token every id stands for, and nothing else.

A draft vocabulary is a list of ids, so it is valid for exactly the tokenizers that map ids to the
same tokens. Versions, file formats, chat templates and special-token flags do not enter: the same
tokenizer loaded by another release of transformers keeps its fingerprint.
"""

import hashlib
import struct
from collections.abc import Mapping
from typing import Any


def fingerprint_of_tokens(vocabulary: Mapping[str, int] | Mapping[bytes, int]) -> str:
    """Return the fingerprint of a token -> id mapping, added tokens included.

    Args:
        vocabulary: As `PreTrainedTokenizerBase.get_vocab()` gives it; tokens may be bytes.

    Returns:
        "sha256:" and 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    entries = sorted(
        (token_id, token if isinstance(token, bytes) else token.encode("utf-8", "surrogatepass"))
        for token, token_id in vocabulary.items()
    )
    for token_id, token in entries:
        # Lengths make the encoding prefix-free, so that no two mappings hash the same bytes.
        digest.update(struct.pack("<qq", token_id, len(token)))
        digest.update(token)
    return f"sha256:{digest.hexdigest()}"


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return the fingerprint of a transformers tokenizer, as SGLang holds it while serving."""
    return fingerprint_of_tokens(tokenizer.get_vocab())
