"""The shape of a draft: K steps, top-k branches, rows verified; with top-k 1 it is a chain.

SGLang's EAGLE drafts so: each step keeps the top-k likeliest paths and drafts the top-k next tokens
of each; of all tokens drafted, the likeliest paths' are verified, together with the last token that
was decided, in one row each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastmtp_sglang.errors import FastMTPError

# What the draft kernel finds at once (`fastmtp_kernels.draft_logits.MAX_TOP_K`).
MAX_TOP_K = 8
# A row's ancestors among the rows are the bits of one word.
MAX_ROWS = 64
# Rows of a tree whose number is not given: on the machines that were measured they cost least for
# what they bring (docs/algorithm.md).
_DEFAULT_ROWS = 16
_TEXT = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")


@dataclass(frozen=True, order=True)
class TreeShape:
    """A shape that can be drafted and verified, or `PLAIN`.

    Attributes:
        num_steps: K, at least 1; 0 of `PLAIN` alone.
        top_k: 1 to `MAX_TOP_K`.
        num_rows: `--speculative-num-draft-tokens`, K + 1 of a chain.

    Raises:
        FastMTPError: from the constructor, for a shape that is none; names the flags.
    """

    num_steps: int
    top_k: int
    num_rows: int

    def __post_init__(self) -> None:
        steps, top_k, rows = self.num_steps, self.top_k, self.num_rows
        if (steps, top_k, rows) == (0, 1, 1):
            return
        _refuse_no_steps(steps)
        if not 1 <= top_k <= MAX_TOP_K:
            raise FastMTPError(
                f"--speculative-eagle-topk {top_k} must be 1 (a chain) to {MAX_TOP_K} (branches "
                "of a tree): the draft kernel finds no more tokens at once. Give a number in it."
            )
        least, most = steps + 1, 1 + self.num_drafts
        if top_k == 1 and rows != least:
            raise FastMTPError(
                f"--speculative-num-draft-tokens {rows} does not follow from "
                f"--speculative-num-steps {steps}: a chain of K steps verifies K + 1 tokens. "
                "Leave it out, or draft a tree with --speculative-eagle-topk 2 to 8."
            )
        if rows < least:
            raise FastMTPError(
                f"--speculative-num-draft-tokens {rows} is too small for --speculative-num-steps "
                f"{steps}: no path of {steps} drafts fits beside the last token. Give at least "
                f"{least}, or fewer steps."
            )
        if rows > min(most, MAX_ROWS):
            reason = (
                f"more than the {most - 1} tokens that {steps} steps of --speculative-eagle-topk "
                f"{top_k} draft, and the last one"
                if rows > most
                else "more rows than a tree's mask has bits"
            )
            raise FastMTPError(
                f"--speculative-num-draft-tokens {rows} is too large: {reason}. Give at most "
                f"{min(most, MAX_ROWS)}."
            )

    @classmethod
    def of(cls, num_steps: int, top_k: int = 1, num_rows: int | None = None) -> TreeShape:
        """The shape with its default number of rows where none is given.

        Raises:
            FastMTPError: there is no such shape; nor is `PLAIN` one to ask for.
        """
        _refuse_no_steps(num_steps)
        if num_rows is None:
            num_rows = num_steps + 1
            if top_k > 1:
                num_rows = max(num_rows, min(_DEFAULT_ROWS, 1 + _num_drafts(num_steps, top_k)))
        return cls(num_steps, top_k, num_rows)

    @classmethod
    def parse(cls, text: str) -> TreeShape:
        """Read "KxTOPKxROWS", or "KxTOPK" for the default rows.

        Raises:
            FastMTPError: `text` is no shape.
        """
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise FastMTPError(
                f"{text!r} is no shape: write K x top-k x rows, as in 3x8x16, or 3x1 for a chain."
            )
        num_steps, top_k, num_rows = match.groups()
        return cls.of(int(num_steps), int(top_k), None if num_rows is None else int(num_rows))

    @property
    def num_drafts(self) -> int:
        """Tokens that are drafted, of which `num_rows` - 1 are verified."""
        return _num_drafts(self.num_steps, self.top_k)

    def is_within(self, other: TreeShape) -> bool:
        """Whether `other` has as many steps, branches and rows, or more."""
        return (
            self.num_steps <= other.num_steps
            and self.top_k <= other.top_k
            and self.num_rows <= other.num_rows
        )

    def __str__(self) -> str:
        return f"{self.num_steps}x{self.top_k}x{self.num_rows}"


# Plain decoding: nothing is drafted, and the last token alone is read.
PLAIN = TreeShape(0, 1, 1)


def parse_shapes(flag: str, text: str) -> list[TreeShape]:
    """Read shapes between commas, as `TreeShape.parse` does, each once.

    Raises:
        FastMTPError: one of them is none; names `flag`.
    """
    shapes = []
    for part in text.split(","):
        try:
            shapes.append(TreeShape.parse(part))
        except FastMTPError as error:
            raise FastMTPError(f"{flag} {text}: {error}") from error
    return list(dict.fromkeys(shapes))


def _refuse_no_steps(steps: int) -> None:
    if steps < 1:
        raise FastMTPError(
            f"--speculative-num-steps {steps} must be at least 1: it is K, the number of tokens "
            "drafted per step. Leave it out for K=3, or serve without --speculative-algorithm."
        )


def _num_drafts(num_steps: int, top_k: int) -> int:
    return top_k + (num_steps - 1) * top_k**2
