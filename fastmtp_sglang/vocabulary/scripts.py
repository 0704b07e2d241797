"""The script of every token: an int8 table [vocab_size] that builder and serving router share.

A token carries the script of the letters in it; digits, punctuation, whitespace, single bytes and
special tokens are neutral. Tokens that look like programming are set apart (`Script.CODE`): they
never vote for a language, they only tell code from prose among Latin text (see `languages.py`).
Characters are classified by fixed ranges and not by `unicodedata`, so that a table does not change
with the Python version that built it.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from enum import IntEnum
from functools import lru_cache

import torch


class Script(IntEnum):
    """Values of the token table. Vocabulary files store them: never renumber, only append."""

    NEUTRAL = 0
    CODE = 1
    LATIN = 2
    HAN = 3
    KANA = 4
    HANGUL = 5
    CYRILLIC = 6
    ARABIC = 7
    DEVANAGARI = 8
    GREEK = 9
    HEBREW = 10
    THAI = 11
    BENGALI = 12
    TAMIL = 13
    TELUGU = 14
    OTHER = 15  # letters of a script that has no language of its own here: they vote for none


# Letters and marks only: digits and punctuation inside a block are left out on purpose.
_RANGES: dict[Script, str] = {
    Script.LATIN: "41-5A 61-7A AA BA C0-D6 D8-F6 F8-2B8 2E0-2E4 1D00-1D25 1D2C-1D5C 1D62-1D65"
    " 1D6B-1D77 1D79-1DBE 1E00-1EFF 2071 207F 2090-209F 212A-212B 2C60-2C7F A722-A787 A78B-A7FF"
    " AB30-AB5A AB5C-AB64 AB66-AB6D FB00-FB06 FF21-FF3A FF41-FF5A",
    Script.HAN: "2E80-2E99 2E9B-2EF3 2F00-2FD5 3005 3007 3021-3029 3038-303B 3400-4DBF 4E00-9FFF"
    " F900-FAD9 20000-33479",
    Script.KANA: "3041-3096 309D-309F 30A1-30FA 30FC-30FF 31F0-31FF FF66-FF9F",
    Script.HANGUL: "1100-11FF 3131-318E A960-A97C AC00-D7A3 D7B0-D7FB FFA0-FFDC",
    Script.CYRILLIC: "400-481 483-484 487-52F 1C80-1C8A 1D2B 1D78 2DE0-2DFF A640-A69F",
    Script.ARABIC: "610-61A 620-63F 641-65F 66E-6D3 6D5-6DC 6DF-6E8 6EA-6EF 6FA-6FF 750-77F 870-8E1"
    " 8E3-8FF FB50-FDFF FE70-FEFC",
    Script.DEVANAGARI: "900-963 971-97F A8E0-A8FF",
    Script.GREEK: "370-373 376-377 37A-37D 37F 384 386 388-3E1 3F0-3FF 1D26-1D2A 1D5D-1D61"
    " 1D66-1D6A 1DBF 1F00-1FFE 2126 AB65",
    Script.HEBREW: "591-5C7 5D0-5EA 5EF-5F4 FB1D-FB4F",
    Script.THAI: "E01-E3A E40-E4E",
    Script.BENGALI: "980-9E3 9F0-9F1 9FC 9FE",
    Script.TAMIL: "B82-BD7",
    Script.TELUGU: "C00-C63",
    # Armenian; Syriac to Mandaic; Gurmukhi, Gujarati, Oriya; Kannada to Sinhala; Lao, Tibetan,
    # Myanmar, Georgian; Ethiopic to Runic; Khmer, Mongolian; Tifinagh; Yi; Indic extensions.
    Script.OTHER: "531-588 710-74F 780-7B1 7CA-7EA 800-858 A01-A63 A70-A75 A81-AE3 AF9-AFF"
    " B01-B63 B71 C80-CE3 CF1-CF3 D00-D63 D7A-D7F D81-DDF E81-EBD EC0-ECE EDC-EDF F00 F40-FBC"
    " 1000-103F 1050-108F 10A0-10FA 10FC-10FF 1200-135F 1380-138F 13A0-13FD 1401-166C 166F-167F"
    " 1681-169A 16A0-16EA 1780-17D3 1820-18AA 2D00-2D7F 2D80-2DDE A000-A48C A500-A60B A980-A9C0"
    " AB01-AB2E AB70-ABE2",
}

# Signs that are frequent in code and rare in prose and in Markdown: `*`, `#`, `|`, `-`, `>` and the
# backtick belong to Markdown, backslash, `^`, `$` and `&` to LaTeX, and neither is code.
_CODE_SIGNS = frozenset("()[]{}=;_<")
_INDENT = 3  # columns; one or two blanks occur in prose, deeper indentation rarely

_STARTS: list[int] = []
_ENDS: list[int] = []
_SCRIPTS: list[Script] = []
for _first, _last, _script in sorted(
    (int(part.split("-")[0], 16), int(part.split("-")[-1], 16), script)
    for script, parts in _RANGES.items()
    for part in parts.split()
):
    _STARTS.append(_first)
    _ENDS.append(_last)
    _SCRIPTS.append(_script)


@lru_cache(maxsize=65536)
def script_of_codepoint(codepoint: int) -> Script:
    """Return the script of a letter or mark; NEUTRAL for digits, punctuation and symbols."""
    index = bisect_right(_STARTS, codepoint) - 1
    return _SCRIPTS[index] if index >= 0 and codepoint <= _ENDS[index] else Script.NEUTRAL


def script_of_token(token: bytes) -> Script:
    """Return the script that a token (its bytes, possibly cut inside a character) speaks for.

    One kana makes a token Japanese; otherwise the most frequent script other than Latin wins, since
    every language's text carries Latin letters and not the other way round. A character that the
    token cuts short counts if every way to complete it is of one script, as `E4 BD` can only become
    a Han character; a token of a single byte never counts.
    """
    if token.isascii():
        return _script_of_ascii(token.decode("ascii"))
    if len(token) == 1:
        return Script.NEUTRAL
    found: Counter[Script] = Counter()
    position = 0
    while position < len(token):
        length = _utf8_length(token[position])
        piece = token[position : position + length]
        if length == 0 or any(byte & 0xC0 != 0x80 for byte in piece[1:]):
            position += 1  # the end of a character that began in another token, or not UTF-8 at all
        elif len(piece) < length:
            found[_script_of_prefix(piece, length)] += 1
            break
        else:
            found[script_of_codepoint(_codepoint(piece))] += 1
            position += length
    del found[Script.NEUTRAL]
    if Script.KANA in found:
        return Script.KANA
    if len(found) > 1:
        del found[Script.LATIN]
    # `most_common` keeps the order of appearance among equals, so the result is deterministic.
    return found.most_common(1)[0][0] if found else Script.NEUTRAL


def build_token_scripts(
    tokens: Sequence[bytes | None], added_ids: Collection[int], vocab_size: int
) -> torch.Tensor:
    """Return the script of every token id.

    Args:
        tokens: Bytes of each token by id; None where the tokenizer has no such id.
        added_ids: Special and added tokens. `<|im_start|>` is spelled in Latin letters and says
            nothing about language: these are neutral.
        vocab_size: Rows of the target's head; ids of `tokens` at or above it are left out.

    Returns:
        int8 [vocab_size], values of `Script`; ids that the tokenizer does not have are neutral.
    """
    table = torch.zeros(vocab_size, dtype=torch.int8)
    added = frozenset(added_ids)
    values = [
        Script.NEUTRAL if token is None or index in added else script_of_token(token)
        for index, token in enumerate(tokens[:vocab_size])
    ]
    table[: len(values)] = torch.tensor(values, dtype=torch.int8)
    return table


def _script_of_ascii(text: str) -> Script:
    signs = text.strip()
    if any(character.isalpha() for character in text):
        # `_size`, `.append`: tokenizers that glue one sign to a word hide half of the code signs.
        return Script.CODE if "_" in text or signs[0] == "." else Script.LATIN
    if not signs:
        columns = len(text.rsplit("\n", 1)[-1].replace("\t", " " * _INDENT))
        return Script.CODE if columns >= _INDENT else Script.NEUTRAL
    return Script.CODE if any(sign in _CODE_SIGNS for sign in signs) else Script.NEUTRAL


def _utf8_length(lead: int) -> int:
    """Bytes of the character that this lead byte begins; 0 for a continuation or invalid byte."""
    if lead < 0x80:
        return 1
    if 0xC2 <= lead <= 0xDF:
        return 2
    if 0xE0 <= lead <= 0xEF:
        return 3
    return 4 if 0xF0 <= lead <= 0xF4 else 0


def _codepoint(piece: bytes, length: int | None = None) -> int:
    """Bits of a UTF-8 sequence, of one that `length` bytes would complete if it is cut."""
    length = length or len(piece)
    bits = piece[0] if length == 1 else piece[0] & (0xFF >> (length + 1))
    for byte in piece[1:]:
        bits = bits << 6 | byte & 0x3F
    return bits


def _script_of_prefix(prefix: bytes, length: int) -> Script:
    """Script of a character cut after `prefix`, if at least half of the completions agree on it."""
    bits = _codepoint(prefix, length)
    missing = 6 * (length - len(prefix))
    # E0 and F0 followed by small continuation bytes would be overlong forms of shorter characters.
    first = max(bits << missing, 0x800 if length == 3 else 0x10000 if length == 4 else 0)
    completions = range(first, (bits + 1) << missing)
    if len(completions) > 4096:  # only the lead byte of a rare four-byte character is known
        return Script.NEUTRAL
    found = Counter(script_of_codepoint(codepoint) for codepoint in completions)
    neutral = found.pop(Script.NEUTRAL, 0)
    if len(found) == 1 and 2 * neutral <= len(completions):
        return next(iter(found))
    return Script.NEUTRAL
