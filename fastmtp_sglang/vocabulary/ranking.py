"""From token counts to ranked ids: which languages get a list, and which ids are its best.

Pure functions over counts. The same counts give the same ranking: ties are broken by the counts
over all languages, then by the lower id (in BPE the earlier merge, thus the more frequent token).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.counting import TokenCounts
from fastmtp_sglang.vocabulary.draft_cost import DraftCost
from fastmtp_sglang.vocabulary.languages import LANGUAGES
from fastmtp_sglang.vocabulary.target import Target

# Without --languages, a detected language gets a list from this share of the tokens on.
MIN_SHARE = 0.01


@dataclass(frozen=True, eq=False)
class RankedList:
    """One language's ids, best first, and the held-out text to measure a prefix of them on.

    Attributes:
        ids: int64 [n], all ids of the tokenizer below the target's vocabulary size: those always
            included first, then by counts.
        unseen: int64 [n], the same ids ranked without the held-out documents: a prefix of them says
            how well text that was not counted is covered.
        counts: int64 [vocab_size], in all documents.
        heldout: int64 [vocab_size].
        repeats: int64 [vocab_size], see `TokenCounts`.
        required: How many of `ids` are always included.
        documents: How many documents were counted, held-out ones among them.
    """

    ids: np.ndarray
    unseen: np.ndarray
    counts: np.ndarray
    heldout: np.ndarray
    repeats: np.ndarray
    required: int
    documents: int

    def coverage(self, size: int) -> float | None:
        """Return the share of held-out tokens in a list of `size`; None without any.

        That list is ranked without them, as text that nobody counted would meet it.
        """
        total = int(self.heldout.sum())
        return int(self.heldout[self.unseen[:size]].sum()) / total if total else None

    def own_coverage(self, size: int) -> float | None:
        """Return that share together with the tokens that a request's own would hold.

        However many there are: what no place is left for is counted too.
        """
        share, total = self.coverage(size), int(self.heldout.sum())
        if share is None:
            return None
        return share + int(self.repeats[self.unseen[size:]].sum()) / total


def choose_languages(
    counts: TokenCounts, labels: Collection[str], requested: Collection[str]
) -> list[str]:
    """Return the languages that get a list, in a fixed order.

    Args:
        counts: Of all sources.
        labels: Languages given with a source; they always get a list.
        requested: `--languages`; empty to take every language with at least MIN_SHARE of the tokens
            and a held-out document.

    Raises:
        FastMTPError: A requested language was not counted, or nothing was.
    """
    totals = {name: int(values.sum()) for name, values in counts.together.items()}
    for name in requested:
        if not totals.get(name):
            raise FastMTPError(
                f"--languages {name}: no tokens of it were counted; there are "
                f"{', '.join(sorted(totals)) or 'none'}. Add a source, or label one: {name}=PATH."
            )
    enough = MIN_SHARE * sum(totals.values())
    chosen = {name for name in totals if totals[name] and (name in labels or name in requested)}
    if not requested:
        # A few documents are a quotation; nothing of them would be measured either.
        chosen |= {
            name
            for name, total in totals.items()
            if total >= enough and (name in counts.heldout or not counts.heldout)
        }
    if not chosen:
        raise FastMTPError(
            f"sources: no language could be told from their {counts.tokens} tokens. Label them: "
            "LANG=PATH."
        )
    known = [name for name in LANGUAGES if name in chosen]
    return known + sorted(chosen - set(known))


def merge_routes(
    counts: TokenCounts, languages: Sequence[str], routes: Mapping[str, str]
) -> TokenCounts:
    """Return counts per list: languages without one count for the list that they route to."""
    merged = TokenCounts(counts.vocab_size, undecided=counts.undecided)
    for name in languages:
        members = [name] + [
            detected
            for detected, listed in sorted(routes.items())
            if listed == name and detected not in languages
        ]
        for source, target in (
            (counts.counted, merged.counted),
            (counts.heldout, merged.heldout),
            (counts.repeats, merged.repeats),
        ):
            nothing = np.zeros(counts.vocab_size, dtype=np.int64)
            target[name] = sum((source[member] for member in members if member in source), nothing)
        merged.documents[name] = sum(counts.documents.get(member, 0) for member in members)
    return merged


def rank(
    counts: TokenCounts, target: Target, required: set[int], languages: Sequence[str]
) -> dict[str, RankedList]:
    """Rank the target's token ids for each language.

    Args:
        counts: Per list, from `merge_routes`.
        target: Only ids of its tokenizer and below its vocabulary size are ranked.
        required: Ids always included; a stop id without a token is among them.
        languages: Lists to make.
    """
    tokens = enumerate(target.token_bytes[: target.vocab_size])
    with_token = {index for index, token in tokens if token is not None}
    eligible = np.array(sorted(with_token | required), dtype=np.int64)
    is_required = np.isin(eligible, np.array(sorted(required), dtype=np.int64))

    def ranking(counts: Mapping[str, np.ndarray], language: str) -> np.ndarray:
        totals = sum(counts.values(), np.zeros(target.vocab_size, dtype=np.int64))
        # lexsort sorts by its last key first.
        keys = (eligible, -totals[eligible], -counts[language][eligible], ~is_required)
        return eligible[np.lexsort(keys)]

    together = counts.together
    return {
        language: RankedList(
            ids=ranking(together, language),
            unseen=ranking(counts.counted, language),
            counts=together[language],
            heldout=counts.heldout[language],
            repeats=counts.repeats[language],
            required=int(is_required.sum()),
            documents=counts.documents[language],
        )
        for language in languages
    }


def check_size(ranked: RankedList, size: int, language: str) -> None:
    """Refuse a size that cannot be met exactly.

    Raises:
        FastMTPError: Smaller than what is always included, or larger than the tokenizer.
    """
    if size < ranked.required:
        raise FastMTPError(
            f"size {size} of '{language}': stop and special tokens, single bytes, digits, "
            f"whitespace and the chat template alone are {ranked.required} ids. Choose a larger "
            "size."
        )
    if size > len(ranked.ids):
        raise FastMTPError(
            f"size {size} of '{language}': the tokenizer has {len(ranked.ids)} tokens below the "
            "target's vocabulary size. Choose a smaller size."
        )


def predicted_speedup(
    ranked: RankedList, size: int, cost: DraftCost, own_tokens: int = 0
) -> float | None:
    """Return the predicted speed of a list, with up to `own_tokens` of the request's own beside it.

    As if all of these were there; None if nothing was held out to tell.
    """
    coverage = ranked.own_coverage(size) if own_tokens else ranked.coverage(size)
    return None if coverage is None else cost.speedup(size + own_tokens, coverage)


def recommend(
    ranked: RankedList, sizes: Sequence[int], cost: DraftCost, own_tokens: int = 0
) -> int | None:
    """Return the size with the best predicted speed, the smaller one of equals.

    None if the full vocabulary is predicted to be at least as fast as any of them, or if nothing
    was held out to tell.
    """
    best_size, best_speed = None, 1.0
    for size in sorted(sizes):
        speed = predicted_speedup(ranked, size, cost, own_tokens)
        if speed is not None and speed > best_speed:
            best_size, best_speed = size, speed
    return best_size
