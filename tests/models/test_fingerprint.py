"""The tokenizer fingerprint: it changes when, and only when, an id means another token.

Run alone: pytest tests/models/test_fingerprint.py
"""

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from fastmtp_sglang.models.fingerprint import fingerprint_of_tokens, tokenizer_fingerprint

TOKENS = {"a": 0, "b": 1, "Ġ的": 2}
PINNED = "sha256:f86177bb4d1dfcd10a154188e37ed22769ed61eb2d737ba99d64400af4d8a561"


def test_order_does_not_matter_and_ids_do():
    assert fingerprint_of_tokens(TOKENS) == fingerprint_of_tokens(dict(reversed(TOKENS.items())))
    assert fingerprint_of_tokens(TOKENS) != fingerprint_of_tokens({"a": 1, "b": 0, "Ġ的": 2})
    assert fingerprint_of_tokens(TOKENS) != fingerprint_of_tokens(TOKENS | {"<think>": 3})


def test_token_boundaries_matter():
    assert fingerprint_of_tokens({"ab": 0, "c": 1}) != fingerprint_of_tokens({"a": 0, "bc": 1})


def test_value_is_pinned():
    """Files in the world carry it: a change of the algorithm is a change of the file format."""
    assert fingerprint_of_tokens(TOKENS) == PINNED


def test_added_tokens_count_but_their_flags_do_not():
    def tokenizer(special: bool, added: str = "<think>") -> Tokenizer:
        built = Tokenizer(BPE(vocab={"a": 0, "b": 1}, merges=[]))
        built.add_tokens([AddedToken(added, special=special)])
        return built

    assert tokenizer_fingerprint(tokenizer(True)) == tokenizer_fingerprint(tokenizer(False))
    assert tokenizer_fingerprint(tokenizer(True)) != tokenizer_fingerprint(
        tokenizer(True, "<tool>")
    )
