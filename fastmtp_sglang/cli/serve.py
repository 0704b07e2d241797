"""`fastmtp serve MODEL`: print the exact `sglang serve` command for it, and become that command.

A thin launcher. It fills in what a person would look up (the embedded model's paths, the flags that
turn FASTMTP on) and leaves every other decision to SGLang and to our plugin inside it.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastmtp_sglang.errors import FastMTPError

_MODEL_FLAGS = ("--model-path", "--model")


def serve(
    model: Annotated[
        str, typer.Argument(help="Model directory, Hugging Face name, or smollm2 (embedded).")
    ],
    sglang_flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SGLANG_FLAGS...]", help="Any flags of `sglang serve`."),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="Head directory or name. Default: the MTP layer in the model's own files.",
        ),
    ] = None,
    num_steps: Annotated[
        int | None, typer.Option(min=1, help="Tokens drafted per step (K). Default: 3.")
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Draft vocabulary file. Default: draft over all tokens.")
    ] = None,
    no_speculation: Annotated[
        bool, typer.Option("--no-speculation", help="Serve the baseline, without FASTMTP.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and end.")] = False,
) -> None:
    """Serve MODEL with FASTMTP speculation: prints the `sglang serve` command and runs it."""
    arguments = command(
        model,
        sglang_flags or [],
        draft=draft,
        num_steps=num_steps,
        vocabulary=vocabulary,
        speculation=not no_speculation,
    )
    print(shlex.join(arguments), flush=True)
    if not dry_run:
        os.execvp(arguments[0], arguments)


def command(
    model: str,
    sglang_flags: list[str],
    *,
    draft: str | None = None,
    num_steps: int | None = None,
    vocabulary: Path | None = None,
    speculation: bool = True,
) -> list[str]:
    """Return the command that serves `model`; builds the embedded model and its head if need be.

    Flags given by hand come last and win. Raises FastMTPError for arguments that contradict each
    other, would be ignored, or name local files that do not exist.
    """
    from fastmtp_sglang import smollm2
    from fastmtp_sglang.server_process import launch_prefix

    if given := [flag for flag in sglang_flags if flag.split("=")[0] in _MODEL_FLAGS]:
        raise FastMTPError(f"{given[0]} after -- repeats MODEL {model}: remove one of the two")
    if not speculation:
        _refuse_with_baseline(
            {"--draft": draft, "--num-steps": num_steps, "--vocabulary": vocabulary}
        )
    _refuse_missing_path("MODEL", model)
    if draft is not None:
        _refuse_missing_path("--draft", draft)
    if vocabulary is not None and not vocabulary.is_file():
        raise FastMTPError(
            f"--vocabulary {vocabulary} is not a file: give one made by `fastmtp vocab build`"
        )

    path = model
    flags: list[str] = []
    if model == smollm2.NAME:
        path = str(smollm2.checkpoint(_say))
        flags += smollm2.SERVE_FLAGS
        if speculation and draft is None:
            head = smollm2.draft_head(num_steps, progress=_say)
            draft = str(head.path)
            if not head.trained:
                _say("the draft head is untrained: answers are the same, and slower than without")
    if speculation:
        flags += speculation_flags(draft, num_steps, vocabulary)
    return [*launch_prefix(), "--model-path", path, *flags, *sglang_flags]


def speculation_flags(
    draft: str | None, num_steps: int | None, vocabulary: Path | None = None
) -> list[str]:
    """Return the flags that turn FASTMTP on in `sglang serve`; None is left to the plugin."""
    flags = ["--speculative-algorithm", "FASTMTP"]
    if draft is not None:
        flags += ["--speculative-draft-model-path", draft]
    if num_steps is not None:
        flags += ["--speculative-num-steps", str(num_steps)]
    if vocabulary is not None:
        flags += ["--speculative-token-map", str(vocabulary)]
    return flags


def _refuse_with_baseline(options: dict[str, object]) -> None:
    for name, value in options.items():
        if value is not None:
            raise FastMTPError(
                f"{name} {value} has no effect with --no-speculation: remove one of the two"
            )


def _refuse_missing_path(name: str, value: str) -> None:
    """Refuse what can only be a local path and is not there; SGLang would try to download it."""
    looks_local = value.startswith((".", "/", "~")) or value.count("/") > 1
    if looks_local and not Path(value).is_dir():
        raise FastMTPError(
            f"{name} {value} is not a directory: give an existing one, "
            "or a Hugging Face name such as Qwen/Qwen3-8B"
        )


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
