"""Near duplicates by MinHash, and prompts that belong to an evaluation.

Texts are compared by runs of words; a character of a script without spaces is a word.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from fastmtp_sglang.errors import FastMTPError

_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
# Thai vowel signs are no letters to Python.
_PUNCTUATION = re.compile(r"[^\w\s\u0e00-\u0e7f]")
_SHINGLE = 5
# Error of the estimated similarity: about 1 / sqrt(128) = 0.09 at most, 0.04 at 0.8.
_PERMUTATIONS = 128
# 13 words in a row are shared by chance with nothing (GPT-3, appendix C).
_CONTAMINATION = 13
# A shorter prompt is no quotation where it stands in the middle of a sentence.
_MIN_QUOTED = 5


class NearDuplicates:
    """Remembers texts and tells whether a new one is nearly one of them.

    `threshold` is the Jaccard similarity of the shingles from which two texts count as one. Some
    5 KB of memory a text. Raises FastMTPError where datasketch is missing.
    """

    def __init__(self, threshold: float, seed: int) -> None:
        try:
            import datasketch
        except ImportError as error:
            raise FastMTPError(
                "de-duplication needs datasketch: run `pip install 'fastmtp-sglang[train]'`, or "
                "give --no-dedup"
            ) from error
        self._threshold = threshold
        self._seed = seed
        self._minhash: Any = datasketch.MinHash
        self._index = datasketch.MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._kept: dict[int, Any] = {}

    def seen(self, text: str) -> bool:
        """Tell whether `text` is nearly an earlier one; remembers it if not."""
        sketch = self._minhash(num_perm=_PERMUTATIONS, seed=self._seed)
        sketch.update_batch([shingle.encode("utf-8", "replace") for shingle in shingles(text)])
        # The index gives candidates; the sketches decide.
        if any(
            self._kept[key].jaccard(sketch) >= self._threshold for key in self._index.query(sketch)
        ):
            return True
        key = len(self._kept)
        self._index.insert(key, sketch)
        self._kept[key] = sketch
        return False


class Contamination:
    """Tells whether a text is, or quotes, one of the prompts of an evaluation.

    Compared by words, without punctuation and case. Of a prompt of 13 words or more any 13 in a row
    count, of a shorter one all of it. One of less than five words counts where it is a sentence of
    its own, for every other text holds a "why" or a "thank you".
    """

    def __init__(self, prompts: Iterable[str]) -> None:
        self._runs: dict[int, set[str]] = defaultdict(set)  # by number of words
        for prompt in prompts:
            words, _ = _words(prompt)
            length = min(len(words), _CONTAMINATION)
            if length:
                self._runs[length].update(run for _, run in _runs(words, length))

    def holds(self, text: str) -> bool:
        """Tell whether `text` holds such a run of words."""
        words, ends = _words(text)
        return any(
            run in known and (length >= _MIN_QUOTED or {start, start + length} <= ends)
            for length, known in self._runs.items()
            for start, run in _runs(words, length)
        )


def _words(text: str) -> tuple[list[str], set[int]]:
    """Return the words, and between which of them a sentence or a part of one ends."""
    words: list[str] = []
    ends = {0}
    for line in text.lower().splitlines():
        for word in _WORD.findall(line):
            if _PUNCTUATION.fullmatch(word):
                ends.add(len(words))
            else:
                words.append(word)
        ends.add(len(words))
    return words, ends


def _runs(words: list[str], length: int) -> Iterator[tuple[int, str]]:
    for start in range(len(words) - length + 1):
        yield start, " ".join(words[start : start + length])


def shingles(text: str, length: int = _SHINGLE) -> set[str]:
    """Return the runs of `length` words; a shorter text is one run."""
    words = _WORD.findall(text.lower())
    count = max(1, len(words) - length + 1)
    return {" ".join(words[start : start + length]) for start in range(count)}
