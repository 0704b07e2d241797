# ruff: noqa: RUF001 - characters that look alike are the subject
"""The token table: characters, tokens cut inside a character, and a real 131k vocabulary.

Run alone: pytest tests/vocabulary/test_scripts.py
"""

import pytest
import regex
import torch

from fastmtp_sglang.vocabulary.scripts import (
    Script,
    build_token_scripts,
    script_of_codepoint,
    script_of_token,
)

# `regex` carries the Unicode character database; the table must agree with it.
UNICODE_NAMES = {
    Script.LATIN: r"\p{Latin}",
    Script.HAN: r"\p{Han}",
    Script.KANA: r"[\p{Hiragana}\p{Katakana}]",
    Script.HANGUL: r"\p{Hangul}",
    Script.CYRILLIC: r"\p{Cyrillic}",
    Script.ARABIC: r"\p{Arabic}",
    Script.DEVANAGARI: r"\p{Devanagari}",
    Script.GREEK: r"\p{Greek}",
    Script.HEBREW: r"\p{Hebrew}",
    Script.THAI: r"\p{Thai}",
    Script.BENGALI: r"\p{Bengali}",
    Script.TAMIL: r"\p{Tamil}",
    Script.TELUGU: r"\p{Telugu}",
}


@pytest.mark.parametrize("script", UNICODE_NAMES, ids=lambda script: script.name)
def test_ranges_agree_with_unicode(script: Script):
    """Every letter of the basic plane is found, and nothing of another script is taken."""
    of_script = regex.compile(UNICODE_NAMES[script])
    letter = regex.compile(r"\p{L}")
    of_none = regex.compile(r"[\p{Common}\p{Inherited}\p{Cn}]")
    for codepoint in [*range(0xD800), *range(0xE000, 0xFFFE), *range(0x20000, 0x20100)]:
        character = chr(codepoint)
        if script_of_codepoint(codepoint) == script:
            assert of_script.match(character) or of_none.match(character), hex(codepoint)
        elif of_script.match(character) and letter.match(character):
            # Four turned letters and claudian letters are symbols to every user of text.
            assert codepoint in {0x2132, 0x214E, 0x2183, 0x2184}, hex(codepoint)


@pytest.mark.parametrize("character", "0９٣५,.!?()，。、？「」“”…-—·۔।€$+=\n\t \u3000\u00a0🙂▁")
def test_digits_punctuation_and_space_are_neutral(character: str):
    assert script_of_codepoint(ord(character)) == Script.NEUTRAL


@pytest.mark.parametrize(
    ("token", "script"),
    [
        (b" the", Script.LATIN),
        ("é".encode(), Script.LATIN),
        ("的".encode(), Script.HAN),
        ("，我们".encode(), Script.HAN),
        ("です".encode(), Script.KANA),
        ("食べ物".encode(), Script.KANA),
        ("コンピュータ".encode(), Script.KANA),
        (" 하는".encode(), Script.HANGUL),
        (" что".encode(), Script.CYRILLIC),
        (" في".encode(), Script.ARABIC),
        (" में".encode(), Script.DEVANAGARI),
        ("ગુ".encode(), Script.OTHER),
        ("T恤".encode(), Script.HAN),
        ("abc的".encode(), Script.HAN),
        (b"42", Script.NEUTRAL),
        (b", ", Script.NEUTRAL),
        (b"\n\n", Script.NEUTRAL),
        (b" ", Script.NEUTRAL),
        (b"**", Script.NEUTRAL),
        (b"###", Script.NEUTRAL),
        (b"", Script.NEUTRAL),
        ("。\n".encode(), Script.NEUTRAL),
        ("🙂".encode(), Script.NEUTRAL),
        (b"):\n", Script.CODE),
        (b" =", Script.CODE),
        (b"\n        ", Script.CODE),
        (b"\t\t", Script.CODE),
        (b"_size", Script.CODE),
        (b".append", Script.CODE),
        (b"(the", Script.LATIN),
    ],
)
def test_tokens(token: bytes, script: Script):
    assert script_of_token(token) == script


def test_a_single_byte_carries_no_language():
    """But for ASCII letters."""
    scripts = {byte: script_of_token(bytes([byte])) for byte in range(256)}
    other = {byte for byte in scripts if byte >= 128 or not chr(byte).isalpha()}
    assert {scripts[byte] for byte in other} == {Script.NEUTRAL, Script.CODE}


@pytest.mark.parametrize(
    ("token", "script"),
    [
        ("你".encode()[:2], Script.HAN),
        ("，你".encode()[:-1], Script.HAN),
        ("こ".encode()[:2], Script.KANA),
        ("안".encode()[:2], Script.HANGUL),
        (" न".encode()[:-1], Script.DEVANAGARI),
        (" П".encode()[:-1], Script.CYRILLIC),
        ("，".encode()[:2], Script.NEUTRAL),
        ("。".encode()[:2], Script.NEUTRAL),
        ("🙂".encode()[:3], Script.NEUTRAL),
        ("🙂".encode()[:2], Script.NEUTRAL),
        (" 🙂".encode()[:2], Script.NEUTRAL),
        ("你".encode()[1:], Script.NEUTRAL),
        ("你们".encode()[1:], Script.HAN),
        (b"\xff\xfe", Script.NEUTRAL),
        (b"\xe4a", Script.LATIN),
        (b"\xe0\x80", Script.NEUTRAL),
    ],
)
def test_tokens_cut_inside_a_character(token: bytes, script: Script):
    assert script_of_token(token) == script


def test_special_and_absent_ids_are_neutral_and_ids_beyond_the_model_are_left_out():
    table = build_token_scripts([b"<|user|>", b" the", None, " что".encode()], {0}, 3)
    assert table.tolist() == [Script.NEUTRAL, Script.LATIN, Script.NEUTRAL]
    assert table.dtype == torch.int8
    padded = build_token_scripts([b" the"], set(), 4)
    assert padded.tolist() == [Script.LATIN, 0, 0, 0]


@pytest.mark.heavy
def test_a_real_vocabulary(tekken_tokens: list[bytes | None]):
    table = build_token_scripts(tekken_tokens, range(1000), 131072)
    assert table.shape == (131072,)
    assert table[:1000].count_nonzero() == 0
    counts = dict(zip(Script, torch.bincount(table.long(), minlength=len(Script)), strict=True))
    # Known from the tokenizer itself: mostly Latin, thousands each of the large other scripts.
    assert counts[Script.LATIN] > 80_000
    for script in (Script.HAN, Script.HANGUL, Script.CYRILLIC, Script.ARABIC):
        assert counts[script] > 3_000, script
    for script in Script:
        assert counts[script] > 500, script
    assert counts[Script.NEUTRAL] - 1000 < 3_000
    for index, token in enumerate(tekken_tokens):
        if token is not None and token.strip().isdigit():
            assert table[index] == Script.NEUTRAL, token
