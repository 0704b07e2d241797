"""What else answers these prompts on this CPU, and how fast: one run, taking turns.

The chat template is applied once, and every system gets the same token ids, the same dtype and the
same threads, decodes greedily and gives the same number of new tokens:

transformers                 `generate`, prompts padded on the left
transformers-prompt-lookup   the same with drafts out of the prompt; one prompt at a time only
llama.cpp                    over GGUF files made from the checkpoint, and in Q8_0 as well; needs
                             llama-cpp-python, here or in the environment of --llama-python
sglang                       our CPU platform without speculation
fastmtp                      our CPU platform with FASTMTP

    python -m fastmtp_benchmarks.peers --output benchmarks/results/smollm2-peers-float32.json

Stopped, the same command goes on with the first unfinished round. The exit code is 1 if FASTMTP
changed an answer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastmtp_benchmarks.configurations import Model
from fastmtp_benchmarks.connect import load_tokenizer
from fastmtp_benchmarks.environment import environment, save
from fastmtp_benchmarks.peers_report import memory_limit, save_plot, table
from fastmtp_benchmarks.peers_rounds import (
    FEWEST_PROMPTS,
    Blocks,
    Measurement,
    identical,
    make_rows,
    run_rounds,
)
from fastmtp_benchmarks.peers_systems import (
    PROMPT_LOOKUP_TOKENS,
    LlamaCpp,
    PromptLookup,
    Server,
    System,
    Transformers,
)
from fastmtp_benchmarks.tasks import load_tasks
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models import catalog
from fastmtp_sglang.models.built_in import NO_PREFIX_CACHE
from fastmtp_sglang.models.dtype import DEFAULT_DTYPE, Dtype
from fastmtp_sglang.models.prompting import prompt_ids

if TYPE_CHECKING:
    from rich.console import Console

SYSTEMS = ("transformers", "transformers-prompt-lookup", "llama.cpp", "sglang", "fastmtp")
_REPORTED = ("system", "dtype", "batch", "tokens_per_second", "ratio_to_transformers")
_SUBJECTS = ("rain", "bread", "volcanoes", "bridges")
_QUESTIONS = (
    "Explain to a child how {} comes about.",
    "Write a Python class that models {}, with two methods and a docstring.",
    "Name eight words that have to do with {}, one on each line.",
    "Write a short story in which {} saves a village.",
    "Repeat this sentence word by word, then in the past tense: All of us know something of {}.",
    "What did people believe about {} three hundred years ago?",
    "A shop sells 12 books on {} a day at 9 euros each. What does it take in a week?",
    "Give three arguments for and three against a museum of {}.",
)
# What requests hold beside prompt and answer: drafts, and the last page of each.
_SPARE_TOKENS = 64
_FEWEST_TOTAL_TOKENS = 16384


def main(
    model: Annotated[str, typer.Option(help="Model directory, or smollm2.")] = "smollm2",
    draft: Annotated[
        str | None, typer.Option(help="Head directory. Default: smollm2's, or the model's own.")
    ] = None,
    num_steps: Annotated[
        int | None, typer.Option(min=1, help="K. Default: what the head is for.")
    ] = None,
    fastmtp_flags: Annotated[
        str, typer.Option(help='Of the server with FASTMTP, such as "--speculative-adaptive".')
    ] = "",
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,8,32",
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each system.")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="New tokens per prompt.")] = 64,
    systems: Annotated[
        str | None,
        typer.Option(help=f"Comma-separated, of {', '.join(SYSTEMS)}. Default: all there are."),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(help="Default: bfloat16 where the CPU multiplies it, else float32."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of each system. Default: torch's.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Prompts, as `fastmtp bench --task`: the first turns.")
    ] = None,
    llama_python: Annotated[
        str, typer.Option(help="Python whose environment has llama-cpp-python.")
    ] = sys.executable,
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write, and a plot .png beside it.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="End with one JSON object on stdout.")
    ] = False,
) -> None:
    """Compare this CPU platform with what a person would run instead."""
    from rich.console import Console

    console = Console(stderr=as_json, highlight=False)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    measured_on = environment()  # before, so that the load is not our own
    sizes = _sizes(batch_sizes)
    chosen = _chosen(systems, llama_python, console)
    _require(output)
    flags = _split(fastmtp_flags)
    dtype = dtype or DEFAULT_DTYPE
    path = catalog.directory("--model", model)
    prompts = _prompts(path, task, max(*sizes, FEWEST_PROMPTS), max(sizes))
    threads = threads or measured_on["threads"]
    measured_on |= {"threads": threads}
    made = _make_systems(
        chosen,
        Model(model, draft, num_steps, flags=_server_flags(dtype, prompts, sizes, tokens)),
        path,
        dtype,
        threads,
        fastmtp_flags=flags,
        llama_python=llama_python,
    )
    settings: dict[str, Any] = {
        "model": path.name,
        "dtype": dtype,
        "threads": threads,
        "tokens": tokens,
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16],
        "systems": [system.label for system in made],
        "draft": draft,
        "num_steps": num_steps,
        "fastmtp_flags": fastmtp_flags,
    }
    blocks = Blocks(output.with_suffix(".partial.jsonl") if output else None, settings)
    limit = memory_limit(path, dtype)
    console.print(f"{dtype}, {threads} threads; memory allows {limit['tokens_per_second']} steps/s")
    with ExitStack() as stack:
        for system in made:
            console.print(f"[dim]starting {system.label}[/dim]")
            stack.enter_context(system)
        run_rounds(
            made,
            prompts,
            batch_sizes=sizes,
            rounds=rounds,
            tokens=tokens,
            blocks=blocks,
            say=lambda line: console.print(f"[dim]{line}[/dim]", soft_wrap=True),
        )
        versions = {one.name: one.version for one in made if isinstance(one, LlamaCpp)}

    wanted = [
        one for one in blocks.measurements if one.batch in sizes and one.round in range(rounds)
    ]
    rows = make_rows(wanted)
    same = identical(wanted, "sglang", "fastmtp")
    title = f"{path.name}, greedy, {tokens} new tokens, {threads} threads"
    console.print(table(rows, title))
    if same is not None:
        console.print("{} of {} answers of fastmtp are those of sglang".format(*same))
    if output is not None:
        result = settings | {
            "environment": measured_on,
            "versions": versions,
            "prompt_lookup_tokens": PROMPT_LOOKUP_TOKENS,
            "rounds": rounds,
            "memory_limit": limit,
            "identical_sglang_fastmtp": same,
            "rows": [asdict(row) for row in rows],
            "turns": [_turn(one) for one in wanted],
        }
        save(result, output, shlex.join(sys.argv))
        save_plot(rows, title, output.with_suffix(".png"))
        blocks.discard()
    if as_json:
        reported = [{name: getattr(row, name) for name in _REPORTED} for row in rows]
        print(json.dumps({"rows": reported}), flush=True)
    if same is not None and same[0] != same[1]:
        raise typer.Exit(1)


def _sizes(given: str) -> list[int]:
    try:
        sizes = [int(size) for size in given.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise FastMTPError(f"--batch-sizes {given}: give positive numbers, such as 1,8,32")
    return list(dict.fromkeys(sizes))


def _chosen(given: str | None, llama_python: str, console: Console) -> list[str]:
    """Return the names to measure; what was not asked for and is not installed is left out."""
    import torch

    if torch.accelerator.is_available():
        raise FastMTPError(
            "these are peers on a CPU, and SGLang would serve on the accelerator here: hide it, "
            "such as with CUDA_VISIBLE_DEVICES=''"
        )
    names = list(SYSTEMS) if given is None else given.split(",")
    for name in names:
        if name not in SYSTEMS:
            raise FastMTPError(f"--systems {name}: unknown; give some of {', '.join(SYSTEMS)}")
    if "llama.cpp" in names:
        try:
            found = subprocess.run([llama_python, "-c", "import llama_cpp"], capture_output=True)
        except OSError as error:
            raise FastMTPError(f"--llama-python {llama_python}: {error.strerror}") from error
        if found.returncode != 0:
            missing = f"llama.cpp: {llama_python} cannot import llama_cpp (of llama-cpp-python)"
            if given is not None or llama_python != sys.executable:
                raise FastMTPError(f"{missing}: install it there, or leave llama.cpp out")
            console.print(f"{missing}, so it is not measured", soft_wrap=True)
            names.remove("llama.cpp")
    return names


def _require(output: Path | None) -> None:
    """Refuse an output that could not be written in the end."""
    if output is None:
        return
    if not output.parent.is_dir() or not os.access(output.parent, os.W_OK):
        raise FastMTPError(f"--output {output}: {output.parent} is no directory to write to")
    if find_spec("matplotlib") is None:
        raise FastMTPError(
            "--output: the plot needs matplotlib: run `pip install 'fastmtp-sglang[bench]'`"
        )


def _prompts(model: Path, task: str | None, most: int, fewest: int) -> list[list[int]]:
    """Return up to `most` prompts as token ids, in the chat template if the model has one.

    Raises FastMTPError for less than `fewest`.
    """
    if task is None:
        told = itertools.product(_QUESTIONS, _SUBJECTS)
        # Neighbours are of different kinds, and so are the few of a small batch.
        ordered = sorted(told, key=lambda pair: _SUBJECTS.index(pair[1]))
        asked = [(None, question.format(subject)) for question, subject in ordered]
    else:
        found = [one for each in load_tasks([task], most) for one in each.conversations]
        asked = [(one.system, one.turns[0]) for one in found]
    if len(asked) < fewest:
        raise FastMTPError(
            f"--batch-sizes {fewest}: there are {len(asked)} prompts: give a smaller size, or a "
            "--task with more"
        )
    tokenizer = load_tokenizer(str(model), "--model")
    return [
        prompt_ids(
            tokenizer,
            [
                *([{"role": "system", "content": system}] if system else []),
                {"role": "user", "content": question},
            ],
        )
        for system, question in asked[:most]
    ]


def _server_flags(
    dtype: str, prompts: Sequence[list[int]], sizes: Sequence[int], tokens: int
) -> tuple[str, ...]:
    """Flags of both servers, under which no request of a batch waits for another."""
    needed = max(sizes) * (max(map(len, prompts)) + tokens + _SPARE_TOKENS)
    return (
        *("--dtype", dtype, NO_PREFIX_CACHE),
        *("--max-total-tokens", str(max(needed, _FEWEST_TOTAL_TOKENS))),
        *("--max-running-requests", str(max(*sizes, FEWEST_PROMPTS))),
        # The other systems compute meanwhile, and allocate while this one starts.
        *("--sleep-on-idle", "--mem-fraction-static", "0.95"),
    )


def _make_systems(
    names: Sequence[str],
    model: Model,
    path: Path,
    dtype: str,
    threads: int,
    *,
    fastmtp_flags: Sequence[str],
    llama_python: str,
) -> list[System]:
    made: list[System] = []
    for name in names:
        if name == "transformers":
            made.append(Transformers(path, dtype, threads))
        elif name == "transformers-prompt-lookup":
            made.append(PromptLookup(path, dtype, threads))
        elif name == "llama.cpp":
            made += [LlamaCpp(path, kind, threads, llama_python) for kind in (dtype, "Q8_0")]
        else:
            speculation = name == "fastmtp"
            _, served, *arguments = model.command(
                speculation=speculation,
                draft=model.draft if speculation else None,
                num_steps=model.num_steps if speculation else None,
                flags=fastmtp_flags if speculation else (),
            )
            made.append(Server(name, dtype, served, arguments, threads))
    return made


def _split(flags: str) -> list[str]:
    try:
        return shlex.split(flags)
    except ValueError as error:
        raise FastMTPError(f"--fastmtp-flags {flags}: its quotes do not close") from error


def _turn(one: Measurement) -> dict[str, Any]:
    return {
        "round": one.round,
        "batch": one.batch,
        "system": one.system,
        "dtype": one.dtype,
        "tokens_per_second": round(one.speed, 2),
    }


if __name__ == "__main__":
    try:
        typer.run(main)
    except FastMTPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
