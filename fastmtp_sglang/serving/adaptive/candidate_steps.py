"""--speculative-adaptive-config: how many steps each size of batch may draft.

The file is the one of SGLang's own policy: `{"1": {"candidate_steps": [1, 3]}, "32":
{"candidate_steps": [0]}}`, where a batch takes the entry whose number is closest to its size. What
else SGLang keeps there (hysteresis, averages, intervals) says how it guesses from acceptance;
FASTMTP measures, and has no use for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.errors import FastMTPError

_FLAG = "--speculative-adaptive-config"
_STEPS = "candidate_steps"


@dataclass(frozen=True)
class CandidateSteps:
    """Steps by sizes of batches.

    Attributes:
        by_size: of each size that the file names, the steps, 0 for plain decoding.
    """

    by_size: dict[int, frozenset[int]]

    @classmethod
    def read(cls, path: str | Path, most: int) -> CandidateSteps:
        """Read a file.

        Args:
            path: of the JSON file.
            most: K, the largest number of steps that the other flags allow.

        Raises:
            FastMTPError: it cannot be read, names no size, or steps that are none.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FastMTPError(f"{_FLAG} {path}: {error}. Give a JSON file.") from error
        entries = content if isinstance(content, dict) else {}
        by_size = {
            int(size): _steps(path, size, entry, most)
            for size, entry in entries.items()
            if size.isdecimal()
        }
        if not by_size:
            raise FastMTPError(
                f"{_FLAG} {path} names no size of batch. Give one at least, such as "
                f'{{"1": {{"{_STEPS}": [0, 1, 3]}}}}.'
            )
        return cls(by_size)

    def closest(self, batch_size: int) -> int:
        """The size of the file that a batch takes its steps from; of two the smaller one."""
        return min(self.by_size, key=lambda size: (abs(size - batch_size), size))

    def among(self, shapes: Sequence[TreeShape], batch_size: int) -> tuple[TreeShape, ...]:
        """Those of some shapes that a batch may draft."""
        steps = self.by_size[self.closest(batch_size)]
        return tuple(shape for shape in shapes if shape.num_steps in steps)


def _steps(path: str | Path, size: str, entry: Any, most: int) -> frozenset[int]:
    given = entry.get(_STEPS) if isinstance(entry, dict) else None
    if not isinstance(given, list) or not given or not all(type(x) is int for x in given):
        raise FastMTPError(
            f"{_FLAG} {path}: {_STEPS} of size {size} is {given!r}. Give a list of whole numbers, "
            "0 for plain decoding."
        )
    wrong = [x for x in given if not 0 <= x <= most]
    if wrong:
        raise FastMTPError(
            f"{_FLAG} {path}: size {size} names {wrong[0]} steps, which is not among 0 to {most} "
            f"(--speculative-num-steps). Give --speculative-num-steps {max(given)}, or other steps."
        )
    return frozenset(given)
