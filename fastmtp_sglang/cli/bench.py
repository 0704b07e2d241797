"""`fastmtp bench`: speed, acceptance and identity of configurations on tasks, with a report.

Also `fastmtp bench sweep` (K, vocabulary, load) and `fastmtp bench compare A B`. The work is done
by `fastmtp_benchmarks`, which is imported when a command runs.
"""

import json
import signal
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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


Output = Annotated[
    Path | None, typer.Option(help="Directory to fill; the same command goes on where it stopped.")
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]SOURCE",
        help='.jsonl of {"id","task","system"?,"turns"}, .json (ShareGPT too), a directory of '
        ".jsonl, hub:TASK of the paper, or datasets:NAME[?config=C&split=S&column=F]. Repeatable.",
    ),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INxOUT", help="Throughput task of so many prompt and output tokens. Repeatable."
    ),
]
ShapeText = Annotated[
    list[str] | None,
    typer.Option(metavar="SOURCE", help="Text that --shape cuts prompts from. Default: --task."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Conversations per task. Default: all.")]
Concurrency = Annotated[
    str | None, typer.Option(metavar="N,N,...", help="Conversations in flight. Default: 1.")
]
Rate = Annotated[
    str | None, typer.Option(metavar="R,R,...", help="Poisson arrivals per second instead.")
]
Temperature = Annotated[float, typer.Option(min=0, help="0: greedy, and answers are compared.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="With a temperature.")]
TopK = Annotated[int, typer.Option(min=-1, help="With a temperature; -1: all tokens.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
OutputLength = Annotated[
    int | None, typer.Option(min=1, help="Exactly so many tokens, whatever the model says.")
]
Timeout = Annotated[float, typer.Option(min=1, help="Seconds that an answer may take.")]
TimeLimit = Annotated[
    float | None, typer.Option(min=1, help="Seconds per measurement until no conversation begins.")
]
Retries = Annotated[int, typer.Option(min=0, help="Times that a failed request is sent again.")]
Seed = Annotated[int, typer.Option(help="Of the arrival times.")]
Repeats = Annotated[int, typer.Option(min=1, help="Runs; of each conversation the fastest counts.")]
Rerun = Annotated[bool, typer.Option("--rerun", help="Measure again what is finished.")]
SideBySide = Annotated[
    bool,
    typer.Option(
        "--side-by-side",
        help="Keep all servers running and take turns at each task, for a machine whose speed "
        "wanders. They need the memory together, and --sleep-on-idle.",
    ),
]
ModelName = Annotated[str, typer.Option(help="Model directory, Hugging Face name, or smollm2.")]
Draft = Annotated[
    str | None, typer.Option(help="Head directory. Default: the model's own; embedded for smollm2.")
]
SglangFlags = Annotated[
    str, typer.Option(metavar="FLAGS", help="Flags of `sglang serve`, for every configuration.")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="FASTMTP_API_KEY", help="Key that the servers ask for.")
]
Tokenizer = Annotated[
    str | None, typer.Option(help="Directory or name. Default: the served model's.")
]


@app.callback()
def bench(
    context: typer.Context,
    output: Output = None,
    task: Tasks = None,
    shape: Shapes = None,
    shape_text: ShapeText = None,
    limit: Limit = None,
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
    api_key: ApiKey = None,
    baseline: Annotated[
        str, typer.Option(help="Configuration that speedups compare with.")
    ] = "baseline",
    model: ModelName = "smollm2",
    draft: Draft = None,
    num_steps: Annotated[
        int | None, typer.Option(min=1, help="Tokens drafted per step (K). Default: 3.")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Draft vocabulary of fastmtp+vocab.")
    ] = None,
    sglang_flags: SglangFlags = "",
    concurrency: Concurrency = None,
    rate: Rate = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = -1,
    max_new_tokens: MaxNewTokens = 1024,
    output_length: OutputLength = None,
    timeout: Timeout = 600.0,
    time_limit: TimeLimit = None,
    retries: Retries = 2,
    seed: Seed = 0,
    repeats: Repeats = 1,
    rerun: Rerun = False,
    side_by_side: SideBySide = False,
    tokenizer: Tokenizer = None,
) -> None:
    """Measure configurations on tasks and write a report.

    OUTPUT/summary.json, report.md and plots/; a line per request in requests/.
    """
    if context.invoked_subcommand is not None:
        return
    from fastmtp_benchmarks.configurations import make_configurations, parse_endpoints
    from fastmtp_benchmarks.options import Options, make_model, refuse_with_endpoint

    options = Options.of(locals())
    console = _console()
    if endpoint:
        refuse_with_endpoint(
            {
                "--configuration": configuration,
                "--draft": draft,
                "--num-steps": num_steps,
                "--vocabulary": vocabulary,
                "--sglang-flags": sglang_flags,
            }
        )
        found = parse_endpoints(endpoint)
        plan = options.plan(None, lambda _: found, baseline=baseline, api=api.value)
    else:
        served = make_model(model, draft, num_steps, vocabulary, sglang_flags)
        names = configuration or ["baseline", "fastmtp"]
        plan = options.plan(
            served,
            lambda directory: make_configurations(names, served, directory, _say(console)),
            baseline=baseline,
        )
    _run(plan, console)


@app.command()
def sweep(
    output: Output = None,
    task: Tasks = None,
    shape: Shapes = None,
    shape_text: ShapeText = None,
    limit: Limit = None,
    model: ModelName = "smollm2",
    draft: Draft = None,
    num_steps: Annotated[str, typer.Option(metavar="K,K,...", help="Values of K.")] = "1,2,3",
    vocabulary: Annotated[
        list[str] | None,
        typer.Option(help='Draft vocabulary file, or "full". Repeatable. Default: full.'),
    ] = None,
    sglang_flags: SglangFlags = "",
    concurrency: Concurrency = None,
    rate: Rate = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = -1,
    max_new_tokens: MaxNewTokens = 1024,
    output_length: OutputLength = None,
    timeout: Timeout = 600.0,
    time_limit: TimeLimit = None,
    retries: Retries = 2,
    seed: Seed = 0,
    repeats: Repeats = 1,
    rerun: Rerun = False,
    side_by_side: SideBySide = False,
    tokenizer: Tokenizer = None,
    api_key: ApiKey = None,
) -> None:
    """Measure FASTMTP at every K and draft vocabulary against the baseline."""
    from fastmtp_benchmarks.options import Options, make_model, numbers
    from fastmtp_benchmarks.sweep import FULL, sweep_configurations

    options = Options.of(locals())
    console = _console()
    steps = numbers("--num-steps", num_steps, int)
    served = make_model(model, draft, None, None, sglang_flags)
    plan = options.plan(
        served,
        lambda directory: sweep_configurations(
            served, steps, vocabulary or [FULL], directory, _say(console)
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
    for name in (signal.SIGTERM, signal.SIGHUP):
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
