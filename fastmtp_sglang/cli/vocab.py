"""`fastmtp vocab`: import published id lists, look into a vocabulary file, or build one."""

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.outputs import check_outputs
from fastmtp_sglang.models.license import AcceptLicense

if TYPE_CHECKING:
    from rich.console import Console

    from fastmtp_sglang.vocabulary.counting import TokenCounts
    from fastmtp_sglang.vocabulary.sources import Source

app = typer.Typer(
    help="Draft vocabularies: import, inspect, build.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_DEFAULT_SIZES = "8k,16k,32k,64k"

Model = Annotated[
    str, typer.Option(help="Model or tokenizer directory, or built-in: smollm2, gemma3-270m.")
]
VocabSize = Annotated[
    int | None,
    typer.Option(help="The model's config.vocab_size, for a directory without config.json."),
]
Routes = Annotated[
    list[str] | None,
    typer.Option(
        "--route",
        metavar="DETECTED=LIST",
        help="Serve text detected as one language from another list, such as en=de. Repeatable.",
    ),
]
OwnTokens = Annotated[
    int,
    typer.Option(
        help="Also draft from up to this many tokens of the request itself that its list lacks: "
        "0, 64, 128 or 256."
    ),
]


@app.command("import")
def import_lists(
    lists: Annotated[
        list[str], typer.Argument(metavar="LANG=FILE...", help="Published .pt id lists.")
    ],
    model: Model,
    output: Annotated[Path, typer.Option(help="Vocabulary file to write.")],
    complete: Annotated[
        bool,
        typer.Option(help="Add the ids that `build` always includes, such as stop tokens."),
    ] = False,
    own_tokens: OwnTokens = 0,
    route: Routes = None,
    vocab_size: VocabSize = None,
    accept_license: AcceptLicense = False,
) -> None:
    """Turn FR-Spec or SGLang id lists (.pt) into a vocabulary file."""
    from rich.console import Console

    if path := next((text for text in lists if os.path.exists(text)), None):
        raise FastMTPError(f"{path}: say which language the list is for, such as en={path}.")
    _check_own_tokens(own_tokens)
    paths = _pairs("LANG=FILE", lists)
    check_outputs({"--output": output}, map(Path, paths.values()))
    import torch

    from fastmtp_sglang.vocabulary.builder import token_texts
    from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary, default_routes
    from fastmtp_sglang.vocabulary.id_list import read_id_list
    from fastmtp_sglang.vocabulary.required import required_ids, stop_ids
    from fastmtp_sglang.vocabulary.scripts import build_token_scripts
    from fastmtp_sglang.vocabulary.tables import print_summary, say
    from fastmtp_sglang.vocabulary.target import load_target

    console = Console()
    target = load_target(model, vocab_size=vocab_size)
    required = set().union(*required_ids(target).values())
    ids, samples = {}, {}
    for language, file in paths.items():
        listed = read_id_list(Path(file), vocab_size=target.vocab_size)
        missing = required - set(listed.tolist())
        if missing and complete:
            listed = torch.tensor(sorted({*listed.tolist(), *required}))
            say(console, f"{language}: added {len(missing)} ids that are always included")
        elif missing:
            stops = len(missing & stop_ids(target))
            say(
                console,
                f"{language}: lacks {len(missing)} of the {len(required)} ids that `build` always "
                f"includes, {stops} stop tokens among them; --complete adds them",
            )
        ids[language] = listed
        texts = token_texts(target, listed.tolist())
        # The list no longer says which ids are frequent, so the sample is spread over all of it.
        samples[language] = texts[:: max(1, len(texts) // 300)][:300]
    vocabulary = DraftVocabulary(
        vocab_size=target.vocab_size,
        tokenizer_fingerprint=target.fingerprint,
        ids=ids,
        token_scripts=build_token_scripts(target.token_bytes, target.added_ids, target.vocab_size),
        routes=default_routes(list(ids), _pairs("--route", route or [])),
        source={
            language: f"imported from {Path(file).name}{', completed' if complete else ''}"
            for language, file in paths.items()
        },
        samples=samples,
        own_tokens=own_tokens,
    )
    vocabulary.save(output)
    print_summary(console, vocabulary)
    say(console, f"wrote {output}; serve it with --speculative-token-map {output}")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A vocabulary file.")],
    tokens: Annotated[int, typer.Option(help="Tokens to print per language, at most 300.")] = 200,
    model: Annotated[
        str | None, typer.Option(help="Check that the file is for this model, as serving does.")
    ] = None,
) -> None:
    """Print sizes, overlap, coverage, and some tokens of each list as text."""
    from rich.console import Console
    from rich.text import Text

    from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary
    from fastmtp_sglang.vocabulary.tables import print_summary, say

    console = Console()
    if model is None:
        vocabulary = DraftVocabulary.load(file, vocab_size=None, tokenizer_fingerprint=None)
    else:
        from fastmtp_sglang.models import catalog
        from fastmtp_sglang.vocabulary.fit import load_for

        vocabulary = load_for(file, catalog.directory("--model", model))
        say(console, f"{file} fits {model}")
    say(console, f"{file}: for {vocabulary.vocab_size} rows of head")
    say(console, f"tokenizer {vocabulary.tokenizer_fingerprint}")
    print_summary(console, vocabulary)
    for language in vocabulary.languages:
        shown = vocabulary.samples.get(language, [])[:tokens]
        if shown:
            console.print(f"\n{language}, {len(shown)} tokens:", style="bold")
            # Quoted, so that blanks and line ends show.
            console.print(Text(" ".join(json.dumps(text, ensure_ascii=False) for text in shown)))


@app.command("set")
def set_own_tokens(
    file: Annotated[Path, typer.Argument(help="A vocabulary file.")],
    own_tokens: OwnTokens,
    output: Annotated[Path, typer.Option(help="Vocabulary file to write.")],
) -> None:
    """Copy a vocabulary file, with own tokens of requests turned on or off."""
    _check_own_tokens(own_tokens)
    check_outputs({"--output": output}, [file])
    from dataclasses import replace

    from rich.console import Console

    from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary
    from fastmtp_sglang.vocabulary.tables import print_summary, say

    console = Console()
    vocabulary = DraftVocabulary.load(file, vocab_size=None, tokenizer_fingerprint=None)
    changed = replace(vocabulary, own_tokens=own_tokens)
    changed.save(output)
    print_summary(console, changed)
    say(console, f"wrote {output}; serve it with --speculative-token-map {output}")


@app.command()
def build(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[LANG=]SOURCE...",
            help="Distillation JSONL (recommended: the target's own answers), text files, folders "
            "of either, or datasets:NAME[?config=C&split=S&column=TEXT&data_files=F]. Without LANG "
            "the scripts of its tokens decide, as in serving.",
        ),
    ],
    model: Model,
    output: Annotated[Path, typer.Option(help="Vocabulary file to write.")],
    sizes: Annotated[
        str, typer.Option(help="Sizes to measure and to choose from.")
    ] = _DEFAULT_SIZES,
    size: Annotated[
        str | None,
        typer.Option(help="Sizes to write, such as 16k or en=32k,zh=16k; else the recommended."),
    ] = None,
    languages: Annotated[
        str | None,
        typer.Option(help="Lists to make, such as en,zh; else all with 1 % of the tokens."),
    ] = None,
    heldout: Annotated[
        float, typer.Option(help="Share of documents held out to measure coverage on.")
    ] = 0.1,
    own_tokens: OwnTokens = 0,
    route: Routes = None,
    report: Annotated[
        Path | None, typer.Option(help="Report to write; else OUTPUT with .report.json.")
    ] = None,
    plot: Annotated[bool, typer.Option(help="Draw coverage over size beside the report.")] = True,
    restart: Annotated[
        bool, typer.Option(help="Count from the beginning instead of going on.")
    ] = False,
    vocab_size: VocabSize = None,
    accept_license: AcceptLicense = False,
) -> None:
    """Count tokens per language and write the most frequent ones.

    Killed runs go on where they were; counts are kept beside OUTPUT, so that other sizes of the
    same sources take seconds.
    """
    size_of_others, wanted = _parse_wanted(size)
    candidates = sorted({_parse_size("--sizes", text) for text in sizes.split(",")})
    routes = _pairs("--route", route or [])
    if not 0.0 <= heldout < 1.0:
        raise FastMTPError(f"--heldout {heldout}: must be at least 0 and below 1, such as 0.1.")
    _check_own_tokens(own_tokens)
    check_outputs({"--output": output})  # first, since only a file has a suffix to change
    report_path = report or output.with_suffix(".report.json")
    checkpoint, plot_path = output.with_suffix(".counts"), report_path.with_suffix(".png")
    outputs = {"--output": output, "--report": report_path, "the counts": checkpoint}
    if plot:
        outputs["the plot"] = plot_path
    check_outputs(outputs)

    from rich.console import Console

    from fastmtp_sglang.files.atomic import write_json
    from fastmtp_sglang.vocabulary import builder
    from fastmtp_sglang.vocabulary.report import plot_report, require_matplotlib
    from fastmtp_sglang.vocabulary.sources import open_source
    from fastmtp_sglang.vocabulary.tables import print_sizes, print_summary, say
    from fastmtp_sglang.vocabulary.target import load_target

    if plot:
        require_matplotlib()
    console = Console()
    target = load_target(model, vocab_size=vocab_size)
    opened = [open_source(spec, target.encode) for spec in sources]
    check_outputs(outputs, [file for source in opened for file in source.files])
    if restart:
        checkpoint.unlink(missing_ok=True)
    with _CountingBar(console, opened) as bar:
        result = builder.build(
            target,
            opened,
            builder.BuildOptions(
                candidates=candidates,
                sizes=wanted,
                size_of_others=size_of_others,
                languages=[name.strip() for name in languages.split(",")] if languages else [],
                routes=routes,
                heldout_share=heldout,
                own_tokens=own_tokens,
            ),
            checkpoint=checkpoint,
            on_progress=bar.update,
        )
    print_sizes(console, result.report)
    for note in result.notes:
        say(console, f"note: {note}")
    write_json(report_path, result.report)
    say(console, f"wrote {report_path}")
    if plot:
        plot_report(result.report, plot_path)
        say(console, f"wrote {plot_path}")
    if result.vocabulary is None:
        say(console, "no vocabulary written: the full one is predicted to be the fastest")
        return
    result.vocabulary.save(output)
    print_summary(console, result.vocabulary)
    say(console, f"wrote {output}; serve it with --speculative-token-map {output}")


class _CountingBar:
    """A progress bar over all sources; spins where a source does not know its length."""

    def __init__(self, console: "Console", sources: "list[Source]") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("counting {task.fields[source]}"),
            BarColumn(),
            TextColumn("{task.fields[tokens]:,} tokens"),
            TimeRemainingColumn(),
            console=console,
        )
        self._sources = sources
        self._task = self._progress.add_task("", source="", tokens=0)
        self._shown_at = 0.0

    def __enter__(self) -> "_CountingBar":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, counts: "TokenCounts") -> None:
        """Show where counting is; at most ten times a second, since summing counts takes time."""
        done = counts.source == len(self._sources)
        if time.monotonic() - self._shown_at < 0.1 and not done:
            return
        self._shown_at = time.monotonic()
        source = self._sources[min(counts.source, len(self._sources) - 1)]
        total = source.total
        self._progress.update(
            self._task,
            source=source.spec if not done else "done",
            total=total,
            completed=total if done and total else counts.position,
            tokens=counts.tokens,
        )


def _check_own_tokens(number: int) -> None:
    from fastmtp_kernels.draft_logits import OWN_TOKENS

    if number not in OWN_TOKENS:
        known = ", ".join(map(str, OWN_TOKENS))
        raise FastMTPError(f"--own-tokens {number}: must be one of {known}; 0 turns them off.")


def _pairs(argument: str, texts: list[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise FastMTPError(f"{argument} {text}: must have the form NAME=VALUE.")
        if name in pairs:
            raise FastMTPError(f"{argument} {text}: '{name}' is given twice.")
        pairs[name] = value
    return pairs


def _parse_wanted(text: str | None) -> tuple[int | None, dict[str, int]]:
    if text is None:
        return None, {}
    if "=" not in text:
        return _parse_size("--size", text), {}
    pairs = _pairs("--size", text.split(","))
    return None, {name: _parse_size("--size", value) for name, value in pairs.items()}


def _parse_size(argument: str, text: str) -> int:
    match = re.fullmatch(r"\s*(\d+)(k?)\s*", text, re.IGNORECASE)
    if not match or int(match[1]) == 0:
        raise FastMTPError(
            f"{argument} {text}: must be a number of ids such as 16384 or 16k (k is 1,024)."
        )
    return int(match[1]) * (1024 if match[2] else 1)
