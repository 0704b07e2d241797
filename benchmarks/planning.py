"""From the options of a command line to a `Plan`, checked before anything expensive starts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastmtp_benchmarks.configurations import Configuration, Model, redacted
from fastmtp_benchmarks.connect import Api, load_tokenizer
from fastmtp_benchmarks.endpoint import Sampling
from fastmtp_benchmarks.load import Level
from fastmtp_benchmarks.options import Options
from fastmtp_benchmarks.runs import Plan
from fastmtp_benchmarks.shapes import parse_shape, shape_task
from fastmtp_benchmarks.task import Task
from fastmtp_benchmarks.tasks import load_tasks
from fastmtp_sglang.contract.tree_shape import TreeShape, parse_shapes
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.outputs import check_output_folder
from fastmtp_sglang.models import catalog

# The paper's K and what is shorter, where a sweep is told nothing.
_SWEPT_STEPS = "1,2,3"
# Of a throughput task, when --limit does not say: enough for the highest usual concurrency.
_SHAPE_CONVERSATIONS = 64


def make_plan(
    options: Options,
    model: Model | None,
    configurations: Callable[[Path], list[Configuration]],
    *,
    baseline: str,
    api: Api = "auto",
) -> Plan:
    """Check everything and return what to run.

    Args:
        options: Of the command line.
        model: What servers that are started here serve, None when they run already.
        configurations: Makes the configurations of a benchmark in the given directory.
        baseline: Name of the configuration that speedups compare with.
        api: What to speak to endpoints.

    Raises:
        FastMTPError: Any option that cannot work.
    """
    if options.output is None:
        raise FastMTPError("--output: give a directory for the report, such as results/mine")
    check_output_folder("--output", options.output)
    levels = _levels(options)
    tokenizer = _tokenizer(options, model)
    return Plan(
        output=options.output,
        tasks=_tasks(options, tokenizer),
        configurations=configurations(options.output),
        levels=levels,
        sampling=Sampling(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            max_new_tokens=options.max_new_tokens,
            output_length=options.output_length,
        ),
        command=redacted(shlex.join(["fastmtp", *sys.argv[1:]])),
        baseline=baseline,
        api=api,
        api_key=options.api_key,
        tokenizer=tokenizer if options.tokenizer else None,
        time_limit=options.time_limit,
        timeout=options.timeout,
        retries=options.retries,
        seed=options.seed,
        repeats=options.repeats,
        rerun=options.rerun,
        side_by_side=options.side_by_side,
    )


def make_model(options: Options, num_steps: int | None, vocabulary: Path | None) -> Model:
    """Return what to serve, with --sglang-flags split as a shell does; raises FastMTPError."""
    flags = options.sglang_flags
    try:
        return Model(options.model, options.draft, num_steps, vocabulary, tuple(shlex.split(flags)))
    except ValueError as error:
        raise FastMTPError(f"--sglang-flags {flags}: its quotes do not close ({error})") from error


def drafted_shapes(num_steps: str | None, shapes: str | None) -> list[TreeShape]:
    """Return the chains of --num-steps, then what --shapes adds; raises FastMTPError."""
    if num_steps is None and shapes is None:
        num_steps = _SWEPT_STEPS
    chains = [] if num_steps is None else numbers("--num-steps", num_steps, int)
    added = [] if shapes is None else parse_shapes("--shapes", shapes)
    return list(dict.fromkeys([*map(TreeShape.of, chains), *added]))


def numbers(flag: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Read numbers above 0 between commas; raises FastMTPError naming `flag`."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    # Of numbers among which one is NaN, the least may be another.
    if not values or not all(value > 0 for value in values):
        raise FastMTPError(f"{flag} {text}: give numbers above 0 between commas, such as 1,8,32")
    return list(dict.fromkeys(values))


def refuse_with_endpoint(options: dict[str, object]) -> None:
    """Refuse options that only servers started here could follow."""
    for name, value in options.items():
        if value:
            raise FastMTPError(f"{name} has no effect with --endpoint: those servers run already")


def _levels(options: Options) -> list[Level]:
    if options.rate is None:
        values = numbers("--concurrency", options.concurrency or "1", int)
        return [Level(concurrency=value) for value in values]
    if options.concurrency is not None:
        raise FastMTPError("--concurrency and --rate: give one of them, a load is one of them")
    return [Level(rate=value) for value in numbers("--rate", options.rate, float)]


def _tasks(options: Options, tokenizer: Any) -> list[Task]:
    """With a --shape-text, --task and --shape are both measured; without, --task is the text."""
    asked = options.task or ()
    shapes = [parse_shape(text) for text in options.shape or ()]
    if not asked and not shapes:
        raise FastMTPError(
            "--task: give what to ask, such as a .jsonl file or hub:mt_bench; or --shape 1024x256"
        )
    if not shapes:
        return load_tasks(asked, options.limit)
    tasks = load_tasks(asked)
    texts = load_tasks(options.shape_text) if options.shape_text else tasks
    count = options.limit or _SHAPE_CONVERSATIONS
    made = [shape_task(shape, count, tokenizer, texts) for shape in shapes]
    return [*load_tasks(asked, options.limit), *made] if options.shape_text else made


def _tokenizer(options: Options, model: Model | None) -> Any:
    """Load --tokenizer, or what --shape needs to count prompt tokens."""
    if options.tokenizer is not None:
        return load_tokenizer(options.tokenizer, "--tokenizer")
    if not options.shape:
        return None
    if model is None:
        raise FastMTPError(
            "--shape with --endpoint: needs --tokenizer DIRECTORY, to count prompt tokens"
        )
    ours = catalog.find(model.name)
    return load_tokenizer(model.name if ours is None else str(ours.checkpoint()), "--model")
