"""Configurations of a sweep: K times draft vocabulary, with the baseline to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from fastmtp_benchmarks.configurations import BASELINE, Configuration, Model, fastmtp
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files import cache
from fastmtp_sglang.models import smollm2

FULL = "full"


def sweep_configurations(
    model: Model,
    num_steps: Sequence[int],
    vocabularies: Sequence[str],
    directory: Path,
    progress: cache.Progress = cache.silent,
) -> list[Configuration]:
    """Return the baseline and one FASTMTP configuration per K and vocabulary.

    Args:
        model: What to serve; its own `num_steps` and `vocabulary` are not used.
        num_steps: Values of K.
        vocabularies: Files of draft vocabularies, or "full" for all tokens.
        directory: Of the benchmark.
        progress: Receives lines for people.

    Raises:
        FastMTPError: A vocabulary is not a file, or two files have the same name.
    """
    names = [text if text == FULL else Path(text).stem for text in vocabularies]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise FastMTPError(
            f"--vocabulary: two are called {repeated}, and the report names them so: rename one"
        )
    draft = model.draft
    found = [Configuration(BASELINE, arguments=model.command())]
    for steps, (name, text) in itertools.product(num_steps, zip(names, vocabularies, strict=True)):
        if model.name == smollm2.NAME and model.draft is None:
            draft = str(smollm2.draft_head(steps, progress).path)
        vocabulary = None if text == FULL else Path(text)
        arguments = fastmtp(model, draft, steps, vocabulary, directory)
        found.append(Configuration(f"k{steps}-{name}", arguments=arguments))
    return found
