"""Near duplicates by MinHash, and prompts that belong to an evaluation.

Texts are compared by runs of words; a character of a script without spaces is a word.
"""

import re
from collections.abc import Iterable
from typing import Any

from fastmtp_sglang.errors import FastMTPError

_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
_SHINGLE = 5
# Error of the estimated similarity: about 1 / sqrt(128) = 0.09 at most, 0.04 at 0.8.
_PERMUTATIONS = 128
# 13 words in a row are shared by chance with nothing (GPT-3, appendix C).
_CONTAMINATION = 13


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
    """Tells whether a user turn is, or quotes, one of the prompts of an evaluation."""

    def __init__(self, prompts: Iterable[str]) -> None:
        self._runs: set[str] = set()
        for prompt in prompts:
            self._runs |= shingles(prompt, _CONTAMINATION)

    def holds(self, text: str) -> bool:
        """Tell whether `text` shares 13 words in a row with a prompt, or all of a shorter one."""
        return not self._runs.isdisjoint(shingles(text, _CONTAMINATION))


def shingles(text: str, length: int = _SHINGLE) -> set[str]:
    """Return the runs of `length` words; a shorter text is one run."""
    words = _WORD.findall(text.lower())
    count = max(1, len(words) - length + 1)
    return {" ".join(words[start : start + length]) for start in range(count)}
