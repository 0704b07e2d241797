"""Which conversations to take of each source, so that tokens stand in given proportions.

Nothing is repeated: the source that is the scarcest for its weight sets the size. The draw orders
conversations by a hash of seed and name, so it does not depend on the order of the files, and a
larger draw holds the smaller one.
"""

import hashlib
from collections.abc import Mapping

from fastmtp_sglang.errors import FastMTPError


def parse_weight(flag: str, name: str, text: str) -> tuple[str, float]:
    """Read `NAME=NUMBER`; `flag` and `name` are what errors call the option and its names.

    Raises FastMTPError without a name, or for a number that is negative or no finite one.
    """
    found, _, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    # Infinity and nan are floats too.
    if not found or not 0 <= value < float("inf"):
        raise FastMTPError(f"{flag} {text}: must have the form {name}=NUMBER, 0 or more")
    return found, value


def draw(
    tokens: Mapping[str, Mapping[str, int]],
    weights: Mapping[str, float],
    total_tokens: int | None,
    seed: int,
) -> set[str]:
    """Choose conversations.

    Args:
        tokens: Source -> conversation -> answer tokens.
        weights: Source -> share of the tokens, in any unit; empty to take sources as they are.
        total_tokens: Most tokens to take, None for all that the weights allow.
        seed: Of the draw.

    Returns:
        The names of the conversations.

    Raises:
        FastMTPError: A weight for a source that is not there, a source without a weight, or all
            weights zero.
    """
    have = {source: sum(of.values()) for source, of in tokens.items()}
    if not weights:
        weights = {source: float(count) for source, count in have.items()}
    else:
        _check(weights, have)
    if not any(have.values()):
        return set()
    whole = sum(weights.values())
    size = min(have[source] * whole / weight for source, weight in weights.items() if weight > 0)
    if total_tokens is not None:
        size = min(size, total_tokens)
    chosen: set[str] = set()
    for source, conversations in tokens.items():
        wanted = size * weights[source] / whole
        taken = 0
        for name in sorted(conversations, key=lambda name: _rank(seed, name)):
            # A conversation that would overshoot by more than half of it is left.
            if taken + conversations[name] / 2 > wanted:
                break
            chosen.add(name)
            taken += conversations[name]
    return chosen


def _check(weights: Mapping[str, float], have: Mapping[str, int]) -> None:
    for source in weights:
        if source not in have:
            raise FastMTPError(
                f"--weight {source}={weights[source]:g}: no record of that source is left; there "
                f"are {', '.join(sorted(have))}"
            )
    if missing := sorted(set(have) - set(weights)):
        raise FastMTPError(
            f"--weight: the source {missing[0]} has none; give {missing[0]}=0 to leave it out"
        )
    if not any(weights.values()):
        raise FastMTPError("--weight: all are 0; give at least one source more")


def _rank(seed: int, name: str) -> bytes:
    return hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
