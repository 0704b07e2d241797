"""`fastmtp data`: prepare distillation data for training."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.outputs import check_output_folder, check_outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from fastmtp_sglang.distill.clean import CleanReport, Tally
    from fastmtp_sglang.distill.prompts import PromptSource
    from fastmtp_sglang.distill.records import Record
    from fastmtp_sglang.vocabulary.target import Target

app = typer.Typer(
    help="Prepare distillation data for training.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
# Where a template may open the reasoning: `<|im_start|>assistant\n<think>\n`.
_PROMPT_END_TOKENS = 16


@app.callback()
def data() -> None:
    """Prepare distillation data for training."""


@app.command()
def clean(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="IN...", help="Folders or files of `fastmtp distill`.")
    ],
    output: Annotated[Path, typer.Option(help="File to write, .jsonl; a report beside it.")],
    model: Annotated[
        str | None,
        typer.Option(help="Target, for its tokenizer. Default: the one that the records name."),
    ] = None,
    min_tokens: Annotated[int, typer.Option(min=0, help="Shortest answer.")] = 8,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. Default: any.")
    ] = None,
    max_repetition: Annotated[
        float, typer.Option(help="Largest share of an answer's n-grams that it said before.")
    ] = 0.4,
    ngram: Annotated[int, typer.Option(min=2, help="Tokens of an n-gram.")] = 8,
    keep_truncated: Annotated[
        bool,
        typer.Option("--keep-truncated/--drop-truncated", help="Answers that were cut by length."),
    ] = True,
    dedup: Annotated[
        bool, typer.Option("--dedup/--no-dedup", help="Drop near duplicates (MinHash).")
    ] = True,
    threshold: Annotated[
        float, typer.Option(help="Similarity from which two texts are near duplicates.")
    ] = 0.8,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Prompts of an evaluation, as `distill --prompts` takes them: what quotes them is "
            "dropped. Repeatable.",
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE=W", help="Share of a source in the tokens, in any unit. Repeatable."
        ),
    ] = None,
    total_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most answer tokens to keep. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sketches and draw.")] = 0,
) -> None:
    """Drop cut reasoning, repetition, lengths out of bounds and near duplicates; mix sources."""
    weights = _weights(weight or [])
    _check_flags(output, min_tokens, max_tokens, max_repetition, threshold)
    from rich.console import Console

    from fastmtp_sglang.distill.clean import CleanOptions
    from fastmtp_sglang.distill.clean import clean as run
    from fastmtp_sglang.distill.language_mix import language_mix, language_table
    from fastmtp_sglang.distill.prompts import open_prompts
    from fastmtp_sglang.distill.quality import Limits
    from fastmtp_sglang.distill.records import read_records, record_files
    from fastmtp_sglang.files.atomic import write_json

    files = record_files(inputs)
    excluded = open_prompts(exclude or [], flag="--exclude")
    report_path = output.with_suffix(".report.json")
    check_outputs(
        {"--output": output, "the report": report_path},
        [*files, *(file for source in excluded for file in source.files)],
    )
    console = Console()
    target = _target(console, model, files)
    options = CleanOptions(
        limits=Limits(min_tokens, max_tokens, ngram, max_repetition, keep_truncated),
        threshold=threshold if dedup else None,
        weights=weights,
        total_tokens=total_tokens,
        exclude=_excluded(excluded),
        vocab_size=None if target is None else target.vocab_size,
        seed=seed,
    )
    with _reading_bar(console, files) as on_progress:
        report = run(
            files, output, options, prompt_end=_prompt_end(target), on_progress=on_progress
        )
    _print_report(console, report)
    summary = report.summary()
    if target is not None:
        mix = language_mix(read_records([output]), target)
        summary["languages"] = mix
        if mix:
            console.print(language_table(mix))
    summary["inputs"] = [str(file) for file in files]
    summary["options"] = {
        "min_tokens": min_tokens,
        "max_tokens": max_tokens,
        "ngram": ngram,
        "max_repetition": max_repetition,
        "keep_truncated": keep_truncated,
        "threshold": options.threshold,
        "exclude": exclude or [],
        "weights": weights,
        "total_tokens": total_tokens,
        "seed": seed,
    }
    write_json(report_path, summary)
    _say(console, f"wrote {output} and {report_path}")


@app.command()
def prompts(
    output: Annotated[
        Path, typer.Option(help="New folder: one file of prompts a kind, and report.json.")
    ],
    number: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts to make.")],
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=W", help="Weight of a kind; 1 where none is given. Repeatable."),
    ] = None,
    texts: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="IN",
            help="Records of `fastmtp distill` whose answers are texts to ask about, beside those "
            "of the installed packages. Repeatable.",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="Prompts of an evaluation, as `distill --prompts` takes them: none of the prompts "
            "quotes them. Repeatable.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 0,
) -> None:
    """Make prompts of many kinds from the texts and functions of the installed Python packages."""
    from fastmtp_sglang.distill.tasks.maker import TasksReport, make_tasks, parse_mix, write_tasks

    mix = parse_mix(kind or [])
    check_output_folder("--output", output)
    if output.is_dir() and any(output.iterdir()):
        raise FastMTPError(f"--output {output}: holds files already; give a new folder")
    from rich.console import Console

    from fastmtp_sglang.distill.prompts import open_prompts
    from fastmtp_sglang.distill.records import read_records
    from fastmtp_sglang.distill.tasks.material import Material
    from fastmtp_sglang.files.atomic import write_json

    excluded = _excluded(open_prompts(exclude or [], flag="--exclude"))
    material = Material(own=[record.answer for record in read_records(texts or [])])
    report = TasksReport()
    console = Console()
    with _counting_bar(console, number) as advance:
        rows = make_tasks(material, mix, number, seed, excluded, report)
        write_tasks(output, rows, advance)
    summary = report.summary()
    write_json(output / "report.json", {**summary, "seed": seed, "mix": mix})
    _print_tasks(console, summary)
    _say(console, f"next: fastmtp distill --model MODEL --prompts {output} --output DATA")


def _print_tasks(console: "Console", summary: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("kind", "prompts", "median words", "most words")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, counts in summary["kinds"].items():
        table.add_row(name, *(f"{count:,}" for count in counts.values()))
    console.print(table)
    for reason, count in summary["left_out"].items():
        _say(console, f"left out: {count:,} x {reason}")


def _check_flags(
    output: Path,
    min_tokens: int,
    max_tokens: int | None,
    max_repetition: float,
    threshold: float,
) -> None:
    if output.suffix != ".jsonl":
        raise FastMTPError(f"--output {output}: must be a file that ends with .jsonl")
    check_outputs({"--output": output})
    if max_tokens is not None and max_tokens < min_tokens:
        raise FastMTPError(f"--max-tokens {max_tokens}: is below --min-tokens {min_tokens}")
    if not 0 <= max_repetition <= 1:
        raise FastMTPError(
            f"--max-repetition {max_repetition}: must be from 0 to 1 (1 drops nothing)"
        )
    if not 0 < threshold <= 1:
        raise FastMTPError(f"--threshold {threshold}: must be above 0 and at most 1")


def _weights(texts: list[str]) -> dict[str, float]:
    from fastmtp_sglang.distill.mixing import parse_weight

    weights: dict[str, float] = {}
    for text in texts:
        name, value = parse_weight("--weight", "SOURCE", text)
        if name in weights:
            raise FastMTPError(f"--weight {text}: {name} is given twice")
        weights[name] = value
    return weights


def _excluded(sources: "list[PromptSource]") -> list[str]:
    from fastmtp_sglang.files.conversations import BadRowError

    turns: list[str] = []
    for source in sources:
        for number, row in enumerate(source.conversations()):
            if isinstance(row, BadRowError):
                raise FastMTPError(f"--exclude {source.spec}: row {number} {row}")
            turns += row.turns
    return turns


def _target(console: "Console", model: str | None, files: list[Path]) -> "Target | None":
    """Load the target that is given or, where it is on this machine, the one that records name."""
    from fastmtp_sglang.distill.records import read_records
    from fastmtp_sglang.models import catalog
    from fastmtp_sglang.vocabulary.target import load_target

    if model is None:
        first = next(read_records(files), None)
        if first is None:
            raise FastMTPError(f"{files[0]}: holds no records")
        if catalog.find(first.model) is None and not Path(first.model).is_dir():
            _say(
                console,
                f"the target {first.model} is not on this machine: languages are not shown, and "
                "reasoning that the prompt opens is not seen; give --model for both",
            )
            return None
        model = first.model
    return load_target(model)


def _prompt_end(target: "Target | None") -> "Callable[[Record], str]":
    if target is None:
        return lambda record: ""
    tokenizer = target.tokenizer
    return lambda record: tokenizer.decode(record.prompt_ids[-_PROMPT_END_TOKENS:])


@contextlib.contextmanager
def _reading_bar(console: "Console", files: list[Path]) -> "Iterator[Callable[[int], None]]":
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console
    )
    task = bar.add_task("", total=sum(file.stat().st_size for file in files))
    with bar:
        yield lambda position: bar.update(task, completed=position)


@contextlib.contextmanager
def _counting_bar(console: "Console", number: int) -> "Iterator[Callable[[], None]]":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(TextColumn("making"), BarColumn(), MofNCompleteColumn(), console=console)
    task = bar.add_task("", total=number)
    with bar:
        yield lambda: bar.advance(task)


def _print_report(console: "Console", report: "CleanReport") -> None:
    from rich.table import Table
    from rich.text import Text

    from fastmtp_sglang.distill.clean import Tally

    records = sum(tally.records for tally in report.read.values())
    tokens = sum(tally.tokens for tally in report.read.values())
    table = Table("", "records", "share", "answer tokens", "such as")
    for column in table.columns[1:4]:
        column.justify = "right"

    def row(name: str, tally: "Tally", examples: str = "", style: str = "") -> None:
        share = f"{100 * tally.records / records:.1f} %" if records else ""
        table.add_row(
            Text(name),
            f"{tally.records:,}",
            share,
            f"{tally.tokens:,}",
            Text(examples),
            style=style,
        )

    table.add_row("read", f"{records:,}", "", f"{tokens:,}")
    for reason, tally in sorted(report.dropped.items(), key=lambda item: -item[1].records):
        row(reason, tally, tally.examples[0])
    table.add_section()
    for source, tally in sorted(report.kept.items()):
        row(f"kept of {source}", tally)
    kept = report.kept.values()
    row("kept", Tally(sum(t.records for t in kept), sum(t.tokens for t in kept)), style="bold")
    console.print(table)


def _say(console: "Console", text: str) -> None:
    """Print a line as it is: paths may hold brackets, and are copied from the terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
