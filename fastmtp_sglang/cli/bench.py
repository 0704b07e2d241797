"""`fastmtp bench`: speed, acceptance and identity of configurations on tasks, with a report.

Also `fastmtp bench sweep` (shape, vocabulary, load) and `fastmtp bench compare A B`. The work is
done by `fastmtp_benchmarks`, which is imported when a command runs; the options of the first two
are `fastmtp_benchmarks.options`.
"""

import functools
import inspect
import json
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from fastmtp_benchmarks.options import Options
from fastmtp_sglang.cli.signals import ending_signals

if TYPE_CHECKING:
    from rich.console import Console

    from fastmtp_benchmarks.runs import Plan

app = typer.Typer(
    help="Measure speed, acceptance and identity of served configurations.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


class Api(StrEnum):
    """What to speak to an endpoint."""

    AUTO = "auto"
    SGLANG = "sglang"
    OPENAI = "openai"


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Make of the parameter `options`, the last one, an option a field of `Options`."""
    *own, _ = inspect.signature(command).parameters.values()
    hints = get_type_hints(Options, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(Options)
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = Options(**{option.name: given.pop(option.name) for option in shared})
        command(**given, options=options)

    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
    return run


@app.callback()
@_with_options
def bench(
    context: typer.Context,
    configuration: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FLAGS]",
            help="baseline, nextn, fastmtp, fastmtp+vocab, or a name of your own with flags of "
            "`sglang serve`. Repeatable. Default: baseline and fastmtp.",
        ),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=URL", help="A running server, instead of one that is started. Repeatable."
        ),
    ] = None,
    api: Annotated[
        Api, typer.Option(help="Of endpoints: SGLang's /generate, or /v1/chat/completions.")
    ] = Api.AUTO,
    baseline: Annotated[
        str, typer.Option(help="Configuration that speedups compare with.")
    ] = "baseline",
    num_steps: Annotated[
        int | None, typer.Option(min=1, help="Tokens drafted per step (K). Default: 3.")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Draft vocabulary of fastmtp+vocab.")
    ] = None,
    *,
    options: Options,
) -> None:
    """Measure configurations on tasks and write a report.

    OUTPUT/summary.json, report.md and plots/; a line per request in requests/.
    """
    if context.invoked_subcommand is not None:
        return
    from fastmtp_benchmarks.configurations import make_configurations, parse_endpoints
    from fastmtp_benchmarks.planning import make_model, make_plan, refuse_with_endpoint

    console = _console()
    if endpoint:
        refuse_with_endpoint(
            {
                "--configuration": configuration,
                "--draft": options.draft,
                "--num-steps": num_steps,
                "--vocabulary": vocabulary,
                "--sglang-flags": options.sglang_flags,
            }
        )
        found = parse_endpoints(endpoint)
        plan = make_plan(options, None, lambda _: found, baseline=baseline, api=api.value)
    else:
        served = make_model(options, num_steps, vocabulary)
        names = configuration or ["baseline", "fastmtp"]
        plan = make_plan(
            options,
            served,
            lambda directory: make_configurations(names, served, directory, _say(console)),
            baseline=baseline,
        )
    _run(plan, console)


@app.command()
@_with_options
def sweep(
    num_steps: Annotated[
        str | None,
        typer.Option(metavar="K,K,...", help="Values of K. Default: 1,2,3, or only --shapes."),
    ] = None,
    shapes: Annotated[
        str | None,
        typer.Option(
            metavar="KxTOPKxROWS,...",
            help="Draft trees, such as 3x4x12,3x8x16; 3x1 is a chain. Beside --num-steps.",
        ),
    ] = None,
    vocabulary: Annotated[
        list[str] | None,
        typer.Option(help='Draft vocabulary file, or "full". Repeatable. Default: full.'),
    ] = None,
    *,
    options: Options,
) -> None:
    """Measure FASTMTP at every K, shape of tree and draft vocabulary against the baseline."""
    from fastmtp_benchmarks.planning import drafted_shapes, make_model, make_plan
    from fastmtp_benchmarks.sweep import FULL, sweep_configurations

    console = _console()
    drafted = drafted_shapes(num_steps, shapes)
    served = make_model(options, None, None)
    plan = make_plan(
        options,
        served,
        lambda directory: sweep_configurations(
            served, drafted, vocabulary or [FULL], directory, _say(console)
        ),
        baseline="baseline",
    )
    _run(plan, console)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="DIRECTORY or DIRECTORY:CONFIGURATION.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The same; speedups are B's over A.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare two finished benchmarks on the prompts that both answered."""
    from fastmtp_benchmarks.compare import compare
    from fastmtp_benchmarks.report import FEW_FIGURES, figures_table

    rows, notes = compare(a, b)
    if as_json:
        print(json.dumps({"rows": [row.model_dump() for row in rows], "notes": notes}))
        return
    console = _console()
    for level in dict.fromkeys(row.level for row in rows):
        here = [row for row in rows if row.level == level]
        _print_table(console, f"{b} over {a}, {level}", *figures_table(here, FEW_FIGURES))
    for note in notes:
        console.print(note, markup=False, soft_wrap=True)


def _run(plan: "Plan", console: "Console") -> None:
    """Run the plan and print its tables."""
    from fastmtp_benchmarks.records import Record
    from fastmtp_benchmarks.report import paper_table
    from fastmtp_benchmarks.runs import run

    say = _say(console)
    if plan.baseline not in [configuration.name for configuration in plan.configurations]:
        say(f"no configuration is called {plan.baseline}: there is nothing to compare with")
    stopped_by = 0

    def stop(number: int, _: object) -> None:
        nonlocal stopped_by
        stopped_by = number
        # A shell without job control starts what ends in & with SIGINT ignored, for good.
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # asyncio ends its tasks on this one

    # `kill` and a closing terminal must leave no server behind, as Ctrl-C already does not.
    for name in ending_signals():
        signal.signal(name, stop)
    answered = 0

    def count(record: Record) -> None:
        nonlocal answered
        answered += 1
        status.update(f"{record.configuration}, {record.task}: {answered} answers")

    with console.status("starting") as status:
        try:
            rows = run(plan, say, count)
        except KeyboardInterrupt:
            say("stopped; what is finished is kept, and the same command goes on")
            if not stopped_by:
                raise
            sys.exit(128 + stopped_by)
    for level in dict.fromkeys(row.level for row in rows):
        here = [row for row in rows if row.level == level]
        _print_table(console, level, *paper_table(here))
    say(f"{plan.output / 'report.md'}: all figures; {plan.output / 'plots'}: plots")


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def _say(console: "Console") -> Callable[[str], None]:
    """Return what prints a line as it is: paths may hold brackets, and are copied."""
    return lambda line: console.print(line, markup=False, soft_wrap=True)


def _print_table(
    console: "Console", title: str, header: Sequence[str], body: Sequence[Sequence[str]]
) -> None:
    from rich.table import Table

    table = Table(title=title)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left")
    for line in body:
        table.add_row(*line)
    console.print(table)
