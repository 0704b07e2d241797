"""`fastmtp demo`: a real model through a real server, with FASTMTP and without, side by side.

Two SGLang servers one after the other answer the same prompts greedily, one prompt at a time; the
first answer of each is a warm-up and is not measured. With --json the last line of stdout is one
object, and everything else goes to stderr.
"""

import json
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fastmtp_sglang.cli.signals import ending_signals
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.dtype import Dtype
from fastmtp_sglang.models.license import AcceptLicense

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fastmtp_sglang.models.built_in import BuiltIn
    from fastmtp_sglang.servers.comparison import Answer, Comparison

# Name of each prompt, and what is asked.
Prompts = Sequence[tuple[str, str]]

PROMPTS: Prompts = (
    ("English", "Explain in a few sentences why the sky is blue during the day."),
    ("story", "Tell a short story about a lighthouse keeper who finds a message in a bottle."),
    ("code", "Write a Python function that returns the n-th Fibonacci number without recursion."),
    ("code review", "What is wrong with this C code? `int *f() { int x = 3; return &x; }`"),
    ("math", "A train covers 120 km in 90 minutes. What is its average speed in km/h?"),
    ("Chinese", "请用中文简单介绍一下长城。"),
    ("French", "Quels sont les trois plus grands fleuves de France ?"),
    ("list", "Name ten fruits, one on each line, in alphabetical order."),
)
# For a model that goes on with what it is given: beginnings of texts, several languages and code.
CONTINUATIONS: Prompts = (
    ("English", "The sky is blue during the day because"),
    ("story", "Once upon a time there was a lighthouse keeper who found a message in a bottle."),
    ("code", 'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n'),
    ("Chinese", "长城是中国古代的"),
    ("Japanese", "東京は日本の首都で、"),
    ("Russian", "Москва — столица России,"),
    ("Arabic", "القاهرة هي عاصمة مصر"),
    ("Hindi", "भारत की राजधानी नई दिल्ली"),
)
MAX_NEW_TOKENS = 64
# Idle machines stay below 1.2 from prompt to prompt; other programs on it make speeds meaningless.
MAX_UNSTEADINESS = 1.5


def demo(
    model: Annotated[str, typer.Option(help="Built-in model: smollm2 or gemma3-270m.")] = "smollm2",
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on stdout.")
    ] = False,
    num_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens drafted per step (K). Default: what the head is for."),
    ] = None,
    draft: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Head directory. Default: the embedded head."
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Default: bfloat16."),
    ] = None,
    accept_license: AcceptLicense = False,
) -> None:
    """Answer eight prompts with a built-in model with and without FASTMTP, and compare.

    A base model, which was never taught to chat, goes on with beginnings of texts instead.

    The exit code is 1 if any answer differs.
    """
    from rich.console import Console

    from fastmtp_sglang.models import catalog

    served = catalog.find(model)
    if served is None:
        raise FastMTPError(
            f"--model {model}: the demo has prompts for {catalog.names()}. Give one."
        )
    prompts = CONTINUATIONS if served.chat is None else PROMPTS
    console = Console(stderr=as_json, highlight=False)
    # `kill` and a closing terminal must leave no server behind, as Ctrl-C already does not.
    for name in ending_signals():
        signal.signal(name, lambda number, _: sys.exit(128 + number))
    comparison, trained = _measure(console, served, prompts, num_steps, draft, dtype)
    console.print(_table(comparison, served.title, prompts))
    for line in _verdict(comparison, trained):
        console.print(line, soft_wrap=True)
    if as_json:
        print(json.dumps(comparison.summary()), flush=True)
    if not comparison.all_identical:
        raise typer.Exit(1)


def _measure(
    console: "Console",
    served: "BuiltIn",
    prompts: Prompts,
    num_steps: int | None,
    draft: Path | None,
    dtype: Dtype | None,
) -> tuple["Comparison", bool | None]:
    """Run both servers; also tell whether the head is trained (None: the user's own)."""
    from fastmtp_sglang.models.built_in import NO_PREFIX_CACHE, serve_flags
    from fastmtp_sglang.models.dtype import DEFAULT_DTYPE
    from fastmtp_sglang.servers.comparison import Comparison
    from fastmtp_sglang.servers.launch import speculation_flags

    def progress(message: str) -> None:
        console.print(f"[dim]{message}[/dim]")

    trained = None
    with console.status("preparing the model"):
        model = served.checkpoint(progress)
        if draft is None:
            head = served.draft_head(num_steps, progress)
            draft, trained = head.path, head.trained
            num_steps = num_steps or head.num_steps
    if dtype is None:
        dtype = DEFAULT_DTYPE
        progress(f"serving in {dtype}; --dtype overrides")
    common = (*serve_flags(dtype), NO_PREFIX_CACHE)
    flags = [*common, *speculation_flags(str(draft), num_steps)]

    asked = [(name, text, served.prompt(text)) for name, text in prompts]
    fastmtp = _answers(console, "with FASTMTP", model, flags, asked, live=True)
    baseline = _answers(console, "without speculation", model, common, asked, live=False)
    return Comparison(baseline, fastmtp), trained


def _answers(
    console: "Console",
    label: str,
    model: Path,
    flags: Sequence[str],
    asked: Sequence[tuple[str, str, str]],
    *,
    live: bool,
) -> tuple["Answer", ...]:
    """Serve `model`, answer the first prompt as a warm-up (shown if `live`), then all of them.

    `asked` holds the name of each prompt, what people read of it, and what the server is sent.
    """
    from fastmtp_sglang.servers.comparison import ask
    from fastmtp_sglang.servers.server_process import ServerProcess

    def waiting(seconds: float, _: str) -> None:
        status.update(f"starting SGLang {label}: {seconds:.0f} s")

    began = time.monotonic()
    with (
        console.status(f"starting SGLang {label}") as status,
        ServerProcess(model, flags, on_wait=waiting) as server,
    ):
        console.print(f"[dim]SGLang {label} is up after {time.monotonic() - began:.0f} s[/dim]")
        _, shown, first = asked[0]
        if live:
            status.stop()  # a spinner and text that grows would overwrite each other
            console.print(f"\n[bold]{shown}[/bold]")
            ask(server.url, first, MAX_NEW_TOKENS, partial(_show, console))
            console.print("\n")
            status.start()
        else:
            ask(server.url, first, MAX_NEW_TOKENS)
        answers = []
        for number, (name, _, prompt) in enumerate(asked, 1):
            status.update(f"answering {label}: {number} of {len(asked)}, {name}")
            answers.append(ask(server.url, prompt, MAX_NEW_TOKENS))
        status.update(f"stopping SGLang {label}")
    return tuple(answers)


def _show(console: "Console", text: str) -> None:
    console.print(text, end="", markup=False, soft_wrap=True)
    console.file.flush()


def _table(comparison: "Comparison", title: str, prompts: Prompts) -> "Table":
    from rich import box
    from rich.table import Table

    from fastmtp_sglang.servers.comparison import Comparison, first_difference

    # Without frames it fits 80 columns, also where answers differ.
    table = Table(box=box.SIMPLE, padding=(0, 0, 0, 1))
    table.title = f"{title}, greedy, one request at a time"
    table.add_column("prompt")
    for name in ("tokens", "identical", "acceptance", "baseline", "FASTMTP", "speedup"):
        table.add_column(name, justify="right")
    for (name, _), baseline, fastmtp in zip(
        prompts, comparison.baseline, comparison.fastmtp, strict=True
    ):
        position = first_difference(baseline, fastmtp)
        identical = "yes" if position is None else f"[red]no, from token {position}[/red]"
        _add_row(table, name, identical, Comparison((baseline,), (fastmtp,)))
    table.add_section()
    total = f"{comparison.identical} of {len(prompts)}"
    _add_row(table, "all", total, comparison, style="bold")
    table.caption = "acceptance: tokens per verification; baseline, FASTMTP: tokens/s end to end"
    return table


def _add_row(
    table: "Table", name: str, identical: str, part: "Comparison", style: str | None = None
) -> None:
    figures = part.summary()
    length = figures["acceptance_length"]
    speeds = figures["tokens_per_second"]
    table.add_row(
        name,
        str(sum(len(answer.token_ids) for answer in part.fastmtp)),
        identical,
        "-" if length is None else f"{length:.2f}",
        f"{speeds['baseline']:.1f}",
        f"{speeds['fastmtp']:.1f}",
        f"{figures['speedup']:.2f}x",
        style=style,
    )


def _verdict(comparison: "Comparison", trained: bool | None) -> list[str]:
    """Return what the figures mean, one line each."""
    from fastmtp_sglang.servers.comparison import unsteadiness

    if comparison.all_identical:
        lines = ["Every answer is identical, token id by token id."]
    else:
        asked = len(comparison.baseline)
        lines = [
            f"[red]{asked - comparison.identical} of {asked} answers differ: FASTMTP must never "
            "change a greedy answer. Please report this with the output of `fastmtp doctor`.[/red]"
        ]
    unsteady = max(unsteadiness(comparison.baseline), unsteadiness(comparison.fastmtp))
    if unsteady > MAX_UNSTEADINESS:
        lines.append(
            f"[yellow]This machine was busy: the same work took up to {unsteady:.1f}x as long from "
            "one prompt to another, so the speeds say little. Repeat on an idle one.[/yellow]"
        )
    if trained is False:
        lines.append(
            "The draft head is untrained: its drafts are rejected and FASTMTP only costs time; it "
            "pays with a trained head (--draft DIR)."
        )
    elif comparison.speedup < 1:
        lines.append(
            f"FASTMTP is slower than the baseline here ({comparison.speedup:.2f}x): too few drafts "
            "are accepted for what they cost; a smaller --num-steps may pay."
        )
    return lines
