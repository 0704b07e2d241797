"""Configurations of a sweep: shape times draft vocabulary, with the baseline to compare with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from fastmtp_benchmarks.configurations import BASELINE, Configuration, Model, fastmtp
from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files import cache
from fastmtp_sglang.models import catalog

FULL = "full"


def sweep_configurations(
    model: Model,
    shapes: Sequence[TreeShape],
    vocabularies: Sequence[str],
    directory: Path,
    progress: cache.Progress = cache.silent,
) -> list[Configuration]:
    """Return the baseline and one FASTMTP configuration per shape and vocabulary.

    Args:
        model: What to serve; its own `num_steps` and `vocabulary` are not used.
        shapes: What is drafted; chains among them are named after their K.
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
    for shape, (name, text) in itertools.product(shapes, zip(names, vocabularies, strict=True)):
        if (ours := catalog.find(model.name)) is not None and model.draft is None:
            draft = str(ours.draft_head(shape.num_steps, progress).path)
        vocabulary = None if text == FULL else Path(text)
        drafted, flags = f"k{shape.num_steps}", []
        if shape.top_k > 1:
            drafted = str(shape)
            flags += ["--speculative-eagle-topk", str(shape.top_k)]
            flags += ["--speculative-num-draft-tokens", str(shape.num_rows)]
        arguments = fastmtp(model, draft, shape.num_steps, vocabulary, directory, flags)
        found.append(Configuration(f"{drafted}-{name}", arguments=arguments))
    return found
