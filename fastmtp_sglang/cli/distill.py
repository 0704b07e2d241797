"""`fastmtp distill`: the target answers prompts, its own or given ones; token ids are kept."""

import asyncio
import collections
import contextlib
import dataclasses
import hashlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmtp_sglang.cli.signals import ending_signals
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.outputs import check_output_folder
from fastmtp_sglang.models.license import AcceptLicense

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from rich.console import Console

    from fastmtp_sglang.distill.distiller import Progress
    from fastmtp_sglang.distill.session import Job, Link
    from fastmtp_sglang.distill.store import Store
    from fastmtp_sglang.servers.server_process import ServerProcess
    from fastmtp_sglang.vocabulary.target import Target

# Of the last minute: a speed since the start would hide that a server has become slow.
_SPEED_SECONDS = 60.0
_KEY_VARIABLE = "FASTMTP_API_KEY"


def distill(
    model: Annotated[
        str, typer.Option(help="Target: a model directory, or built-in: smollm2, gemma3-270m.")
    ],
    output: Annotated[Path, typer.Option(help="Directory to fill, or to go on with.")],
    sglang_flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- SGLANG_FLAGS...]", help="Flags of the server that is started here."
        ),
    ] = None,
    prompts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SOURCE",
            help="Prompts: a .jsonl, .json or .parquet file with messages, conversations, turns or "
            "prompt, or datasets:NAME[?config=C&split=S&column=FIELD&data_files=F]. Repeatable.",
        ),
    ] = None,
    self_prompt: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Let the target write N distinct prompts itself."),
    ] = None,
    endpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="SGLang server of the target, such as http://127.0.0.1:30000. Repeatable. "
            "Default: one is started and stopped.",
        ),
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar=_KEY_VARIABLE, help="Key of the endpoints.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Conversations in flight.")] = 32,
    retries: Annotated[
        int, typer.Option(min=1, help="Times a request is tried again at one endpoint.")
    ] = 6,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that an answer may take.")] = 3600,
    temperature: Annotated[float, typer.Option(help="Of answers.")] = 0.6,
    top_k: Annotated[int, typer.Option(help="Of answers; -1 for all tokens.")] = 20,
    top_p: Annotated[float, typer.Option(help="Of answers.")] = 0.95,
    max_new_tokens: Annotated[
        int, typer.Option(help="Of answers; the context bounds it too.")
    ] = 4096,
    prompt_temperature: Annotated[float, typer.Option(help="Of self-written prompts.")] = 1.0,
    prompt_top_k: Annotated[
        int,
        typer.Option(help="Of self-written prompts; -1 for all tokens, which a CPU sorts slowly."),
    ] = -1,
    prompt_top_p: Annotated[float, typer.Option(help="Of self-written prompts.")] = 0.95,
    prompt_max_tokens: Annotated[
        int,
        typer.Option(help="Longer self-written prompts are dropped; without a chat template, cut."),
    ] = 512,
    prompt_starts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="First words of self-written prompts, one start a line, taken in turn: prompts of "
            "many kinds where the target alone would write few.",
        ),
    ] = None,
    turns: Annotated[
        int | None,
        typer.Option(min=1, help="User turns of a conversation. Default: all given ones, or 1."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers to each given prompt.")] = 1,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Rows to take of each source. Default: all.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="System message of conversations without one.")
    ] = None,
    keep_truncated: Annotated[
        bool,
        typer.Option("--keep-truncated/--drop-truncated", help="Answers that were cut by length."),
    ] = True,
    shard_size: Annotated[int, typer.Option(min=1, help="Records per shard.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    accept_license: AcceptLicense = False,
) -> None:
    """Let the target answer prompts, and keep prompts and answers as token ids for training.

    A target without a chat template (a base model) goes on with them as beginnings of texts;
    with --self-prompt it writes each text's first line.

    A killed run goes on with the same command: nothing is asked twice, nothing is lost.
    """
    _check_flags(prompts, self_prompt, prompt_starts, endpoint, samples, limit, sglang_flags)
    check_output_folder("--output", output)
    from rich.console import Console

    from fastmtp_sglang.distill.chat import PlainText, prompting
    from fastmtp_sglang.distill.prompts import open_prompts, read_starts
    from fastmtp_sglang.distill.records import Sampling
    from fastmtp_sglang.distill.session import Job, Link
    from fastmtp_sglang.distill.settings import Settings, check_sampling
    from fastmtp_sglang.distill.store import Store
    from fastmtp_sglang.vocabulary.target import load_target

    sampling = Sampling(
        temperature=temperature, top_k=top_k, top_p=top_p, max_new_tokens=max_new_tokens
    )
    check_sampling(sampling)
    prompt_sampling = Sampling(
        temperature=prompt_temperature,
        top_k=prompt_top_k,
        top_p=prompt_top_p,
        max_new_tokens=prompt_max_tokens,
    )
    check_sampling(prompt_sampling, "prompt-")
    sources = open_prompts(prompts or [])
    starts = read_starts(prompt_starts) if prompt_starts else []
    console = Console()
    target = load_target(model)
    chat = prompting(target.tokenizer, model)
    if isinstance(chat, PlainText):
        _say(console, f"{model} has no chat template: it goes on with prompts as with any text")
    if self_prompt is not None:
        chat.user_turn([], starts[0] if starts else "")  # raises where there is no way to do it
    settings = Settings(
        model=model,
        tokenizer_fingerprint=target.fingerprint,
        chat_template_sha256=hashlib.sha256(
            str(target.tokenizer.chat_template).encode()
        ).hexdigest(),
        prompts=[(source.name, source.signature) for source in sources],
        sampling=sampling,
        prompt_sampling=None if self_prompt is None else prompt_sampling,
        prompt_starts=starts,
        turns=1 if turns is None and self_prompt is not None else turns,
        samples=samples,
        system=system,
        keep_truncated=keep_truncated,
        seed=seed,
    )
    job = Job(settings, target, chat, sources, self_prompt, limit)
    link = Link(tuple(endpoint or ()), api_key, retries, timeout, concurrency)
    with Store(output, settings, shard_size, self_prompt or limit) as store:
        if store.counts.answers and not store.is_complete:
            _say(console, f"going on after {store.counts.answers:,} answers in {output}")
        if not store.is_complete:
            _answer_all(console, job, store, link, sglang_flags or [])
            store.complete()
        _summarize(console, store, target)


def _answer_all(
    console: "Console", job: "Job", store: "Store", link: "Link", sglang_flags: list[str]
) -> None:
    from fastmtp_sglang.distill.session import hold

    with contextlib.ExitStack() as stack:
        if not link.urls:
            server = stack.enter_context(_server(console, job, store, link, sglang_flags))
            link = dataclasses.replace(link, urls=(server.url,))
        bar = stack.enter_context(_Bar(console))
        try:
            asyncio.run(_until_killed(hold(job, store, link, bar.say, bar.update)))
        except (KeyboardInterrupt, SystemExit):
            bar.say("stopped: what is answered is kept, the same command goes on")
            raise


async def _until_killed(work: "Coroutine[Any, Any, None]") -> None:
    """Run `work`; `kill` and a closing terminal end it as Ctrl-C does, and no server is left."""
    killed_by = []
    task = asyncio.ensure_future(work)

    def cancel(number: int) -> None:
        killed_by.append(number)
        task.cancel()

    for number in ending_signals():
        asyncio.get_running_loop().add_signal_handler(number, cancel, number)
    try:
        await task
    except asyncio.CancelledError:
        if killed_by:
            sys.exit(128 + killed_by[0])
        raise


def _check_flags(
    prompts: list[str] | None,
    self_prompt: int | None,
    prompt_starts: Path | None,
    endpoint: list[str] | None,
    samples: int,
    limit: int | None,
    sglang_flags: list[str] | None,
) -> None:
    """Refuse what contradicts itself or would be ignored."""
    if bool(prompts) == (self_prompt is not None):
        problem = "give one of them, not both" if prompts else "give one of them"
        raise FastMTPError(
            f"--prompts and --self-prompt: {problem}: given prompts, or N for as many that the "
            "target writes itself"
        )
    for name, given in (("--samples", samples != 1), ("--limit", limit is not None)):
        if given and self_prompt is not None:
            raise FastMTPError(
                f"{name} has no effect with --self-prompt: ask for more or fewer conversations"
            )
    if prompts and prompt_starts:
        raise FastMTPError("--prompt-starts has no effect with --prompts: those are whole already")
    for url in endpoint or []:
        if not url.startswith(("http://", "https://")):
            raise FastMTPError(
                f"--endpoint {url}: must begin with http:// or https://, such as "
                "http://127.0.0.1:30000"
            )
    if endpoint and sglang_flags:
        raise FastMTPError(
            f"{sglang_flags[0]} after -- has no effect with --endpoint: those servers run already"
        )


def _server(
    console: "Console", job: "Job", store: "Store", link: "Link", sglang_flags: list[str]
) -> "contextlib.AbstractContextManager[ServerProcess]":
    from fastmtp_sglang.distill.session import own_server

    announced = 0.0

    def waiting(seconds: float, _: str) -> None:
        nonlocal announced
        if seconds - announced >= 15:
            announced = seconds
            _say(console, f"starting SGLang: {seconds:.0f} s")

    return own_server(
        job.settings.model,
        sglang_flags,
        concurrency=link.concurrency,
        # Another one after every kill, else SGLang would draw the same prompts again.
        random_seed=(job.settings.seed * 1_000_003 + store.entries) % 2**31,
        log_path=store.directory / "server.log",
        say=lambda line: _say(console, line),
        on_wait=waiting,
    )


class _Bar:
    """A progress bar over conversations with tokens per second and time left."""

    # Without a terminal, where a bar would fill a log with control characters: a line a minute.
    _LINE_SECONDS = 60.0

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console
        self._bar = Progress(
            TextColumn("answering"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} of {task.fields[of]}"),
            TextColumn("{task.fields[tokens]:,} tokens, {task.fields[speed]:.0f} tokens/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", of="?", tokens=0, speed=0.0)
        self._began = time.monotonic()
        self._said_at = self._began
        self._recent: collections.deque[tuple[float, int]] = collections.deque([(self._began, 0)])

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        _say(self._console, line)

    def update(self, progress: "Progress") -> None:
        """Show where the run is."""
        now = time.monotonic()
        self._recent.append((now, progress.tokens))
        while now - self._recent[1][0] > _SPEED_SECONDS:
            self._recent.popleft()
        then, tokens = self._recent[0]
        speed = (progress.tokens - tokens) / max(now - then, 1e-3)
        of = "?" if progress.total is None else f"{progress.total:,}"
        self._bar.update(
            self._task,
            total=progress.total,
            completed=progress.conversations,
            of=of,
            tokens=progress.tokens,
            speed=speed,
        )
        if not self._console.is_terminal and now - self._said_at >= self._LINE_SECONDS:
            self._said_at = now
            self.say(
                f"{now - self._began:.0f} s: {progress.conversations:,} of {of} conversations, "
                f"{progress.tokens:,} tokens, {speed:.0f} tokens/s"
            )


def _summarize(console: "Console", store: "Store", target: "Target") -> None:
    from fastmtp_sglang.distill.language_mix import language_mix, language_table
    from fastmtp_sglang.distill.records import read_records
    from fastmtp_sglang.distill.store import FAILED

    counts = store.counts
    _say(
        console,
        f"{counts.answers:,} answers with {counts.answer_tokens:,} tokens in {store.directory}: "
        f"{counts.finished:,} finished, {counts.length:,} cut by length and kept",
    )
    for reason, number in sorted(counts.skipped.items()):
        again = "; the same command asks them again" if reason == FAILED else ""
        _say(console, f"without an answer: {number:,} x {reason}{again}")
    if not counts.answers:
        raise FastMTPError(
            f"--output {store.directory}: nothing was answered; skipped.journal there says why"
        )
    console.print(language_table(language_mix(read_records([store.directory]), target)))
    _say(console, f"next: fastmtp data clean {store.directory} --output CLEANED.jsonl")


def _say(console: "Console", text: str) -> None:
    """Print a line as it is: paths may hold brackets, and are copied from the terminal."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)
