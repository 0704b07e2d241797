"""A vocabulary file from sources of text: count, rank, measure, choose sizes, cut.

`build` is what `fastmtp vocab build` runs; the steps are in `counting.py` and `ranking.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.counting import TokenCounts, count_tokens
from fastmtp_sglang.vocabulary.draft_cost import DraftCost
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary, default_routes
from fastmtp_sglang.vocabulary.languages import LANGUAGES
from fastmtp_sglang.vocabulary.ranking import (
    RankedList,
    check_size,
    choose_languages,
    merge_routes,
    rank,
    recommend,
)
from fastmtp_sglang.vocabulary.report import build_report
from fastmtp_sglang.vocabulary.required import required_ids
from fastmtp_sglang.vocabulary.scripts import build_token_scripts
from fastmtp_sglang.vocabulary.sources import Source
from fastmtp_sglang.vocabulary.target import Target

# Tokens per language that the file keeps as text, for people who look into it.
SAMPLE_TOKENS = 300


@dataclass(frozen=True)
class BuildOptions:
    """What to make of the counts.

    Attributes:
        candidates: Sizes to measure and to recommend from.
        sizes: Language -> size to write; languages that are missing get the recommended size.
        size_of_others: Size of languages not in `sizes`, None to recommend one.
        languages: Lists to make; empty for all with enough tokens.
        routes: Detected language -> list, beside `default_routes`.
        heldout_share: Share of documents to measure coverage on, in [0, 1).
        own_tokens: How many of a request's own tokens are drafted from beside its list.
    """

    candidates: Sequence[int]
    sizes: Mapping[str, int] = field(default_factory=dict)
    size_of_others: int | None = None
    languages: Sequence[str] = ()
    routes: Mapping[str, str] = field(default_factory=dict)
    heldout_share: float = 0.1
    own_tokens: int = 0


@dataclass(frozen=True)
class BuildResult:
    """A vocabulary (None if the full one is best for every language), its report, and remarks."""

    vocabulary: DraftVocabulary | None
    report: dict[str, Any]
    notes: list[str]


def build(
    target: Target,
    sources: Sequence[Source],
    options: BuildOptions,
    *,
    checkpoint: Path,
    on_progress: Callable[[TokenCounts], None],
) -> BuildResult:
    """Count the sources and cut their most frequent ids into lists.

    Args:
        target: The model that the lists are for.
        sources: What to count.
        options: What to make of the counts.
        checkpoint: Counts and position, see `count_tokens`.
        on_progress: See `count_tokens`.

    Raises:
        FastMTPError: Sources that cannot be read or hold no language, sizes that cannot be met, or
            no way to recommend a size where none is given.
    """
    cost = DraftCost.from_config({**target.config, "vocab_size": target.vocab_size})
    if cost is None and options.size_of_others is None and not options.sizes:
        raise FastMTPError(
            f"--model {target.path}: without the model's shapes in a config.json no size can be "
            "recommended. Choose one with --size, or give the model's directory."
        )
    token_scripts = build_token_scripts(target.token_bytes, target.added_ids, target.vocab_size)
    counts = count_tokens(
        sources,
        token_scripts,
        tokenizer_fingerprint=target.fingerprint,
        heldout_share=options.heldout_share,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )
    labels = {source.label for source in sources if source.label}
    languages = choose_languages(counts, labels, options.languages)
    routes = default_routes(languages, options.routes)
    required = required_ids(target)
    ranked = rank(
        merge_routes(counts, languages, routes), target, set().union(*required.values()), languages
    )
    candidates = [size for size in options.candidates if _fits(ranked[languages[0]], size)]
    recommended = {
        language: None
        if cost is None
        else recommend(ranked[language], candidates, cost, options.own_tokens)
        for language in languages
    }
    written = _sizes_to_write(options, ranked, recommended)
    vocabulary = None
    if written:
        origin = ", ".join(source.spec for source in sources)
        source = f"counted in {origin}"
        own_tokens = options.own_tokens
        vocabulary = cut(target, token_scripts, ranked, written, routes, source, own_tokens)
    report = build_report(
        target,
        counts,
        required,
        ranked,
        candidates,
        cost,
        recommended,
        written,
        [source.spec for source in sources],
        options.own_tokens,
    )
    return BuildResult(vocabulary, report, _notes(options, counts, ranked, routes, written))


def cut(
    target: Target,
    token_scripts: torch.Tensor,
    ranked: Mapping[str, RankedList],
    sizes: Mapping[str, int],
    routes: Mapping[str, str],
    source: str,
    own_tokens: int = 0,
) -> DraftVocabulary:
    """Cut ranked ids to exact sizes.

    Args:
        target: The model that the lists are for.
        token_scripts: int8 [vocab_size].
        ranked: From `rank`.
        sizes: Language -> number of ids; the languages to write, in their order.
        routes: Detected language -> list; routes to lists that are not written are left out.
        source: Where the counts come from, in words.
        own_tokens: How many of a request's own tokens are drafted from beside its list.

    Raises:
        FastMTPError: A size that cannot be met exactly.
    """
    ids, counts, samples = {}, {}, {}
    coverage, own_coverage = {}, {}
    for language, size in sizes.items():
        chosen = ranked[language]
        check_size(chosen, size, language)
        best = chosen.ids[:size]
        listed = np.sort(best)
        ids[language] = torch.from_numpy(listed)
        counts[language] = torch.from_numpy(chosen.counts[listed])
        covered, with_own = chosen.coverage(size), chosen.own_coverage(size)
        if covered is not None and with_own is not None:
            coverage[language], own_coverage[language] = covered, with_own
        frequent = best[np.lexsort((best, -chosen.counts[best]))][:SAMPLE_TOKENS]
        samples[language] = token_texts(target, frequent.tolist())
    return DraftVocabulary(
        vocab_size=target.vocab_size,
        tokenizer_fingerprint=target.fingerprint,
        ids=ids,
        token_scripts=token_scripts,
        routes={detected: listed for detected, listed in routes.items() if listed in sizes},
        source=dict.fromkeys(sizes, source),
        counts=counts,
        coverage=coverage,
        samples=samples,
        own_tokens=own_tokens,
        own_coverage=own_coverage,
    )


def token_texts(target: Target, ids: Sequence[int]) -> list[str]:
    """Return tokens as text; bytes that are no text alone show as U+FFFD, an id without as ""."""
    known = target.token_bytes
    tokens = [known[index] if index < len(known) else None for index in ids]
    return [(token or b"").decode("utf-8", "replace") for token in tokens]


def _fits(ranked: RankedList, size: int) -> bool:
    return ranked.required <= size <= len(ranked.ids)


def _sizes_to_write(
    options: BuildOptions,
    ranked: Mapping[str, RankedList],
    recommended: Mapping[str, int | None],
) -> dict[str, int]:
    unknown = sorted(set(options.sizes) - set(ranked))
    if unknown:
        raise FastMTPError(
            f"--size {unknown[0]}=...: no list of that language is made; there are "
            f"{', '.join(ranked)}."
        )
    sizes = {}
    for language, chosen in ranked.items():
        size = options.sizes.get(language, options.size_of_others)
        if size is None and not chosen.heldout.any():
            raise FastMTPError(
                f"'{language}': none of its {chosen.documents} documents was held out, so no size "
                "can be recommended. Choose one with --size, add text, or raise --heldout (with "
                "--restart)."
            )
        if size is None:
            size = recommended[language]
        if size is not None:
            sizes[language] = size
    return sizes


def _notes(
    options: BuildOptions,
    counts: TokenCounts,
    ranked: Mapping[str, RankedList],
    routes: Mapping[str, str],
    written: Mapping[str, int],
) -> list[str]:
    some = next(iter(ranked.values()))
    notes = [
        f"size {size}: not measured; {some.required} ids are always included and the tokenizer has "
        f"{len(some.ids)}"
        for size in options.candidates
        if not _fits(some, size)
    ]
    together = counts.together
    for language in sorted(set(together) - set(ranked)):
        tokens = int(together[language].sum())
        use = f"the list of '{routes[language]}'" if language in routes else "the full vocabulary"
        notes.append(f"{language}: {tokens} tokens counted, no list; drafts from {use}")
    for language in ranked:
        if language not in written:
            notes.append(f"{language}: no size is predicted to beat the full vocabulary")
        elif language not in routes.values():
            notes.append(
                f"{language}: never detected by script; only requests that name it use its list, "
                f"or give --route DETECTED={language} with DETECTED one of {', '.join(LANGUAGES)}"
            )
    if counts.undecided:
        notes.append(f"{counts.undecided} tokens are in texts whose scripts name no language")
    return notes
