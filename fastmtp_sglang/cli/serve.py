"""`fastmtp serve MODEL`: print the exact `sglang serve` command for it, and become that command.

The command is made by `fastmtp_sglang.servers.launch`; here are only the options and the last step.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastmtp_sglang.models.dtype import Dtype
from fastmtp_sglang.models.license import AcceptLicense


def serve(
    model: Annotated[
        str,
        typer.Argument(help="Directory, Hugging Face name, or built-in: smollm2, gemma3-270m."),
    ],
    sglang_flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- SGLANG_FLAGS...]", help="Any flags of `sglang serve`."),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(
            help="Head directory or name. Default: the MTP layer in the model's own files; "
            "for a built-in model the head that ships, or an untrained one.",
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
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            help="Of weights and activations. Default: SGLang's choice; for built-in models "
            "bfloat16."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and end.")] = False,
    accept_license: AcceptLicense = False,
) -> None:
    """Serve MODEL with FASTMTP speculation: prints the `sglang serve` command and runs it."""
    from fastmtp_sglang.models import catalog
    from fastmtp_sglang.servers.address import require_free_port, require_temporary_folder
    from fastmtp_sglang.servers.launch import arguments, check_speculation
    from fastmtp_sglang.servers.server_process import launch_prefix

    flags = arguments(
        model,
        sglang_flags or [],
        draft=draft,
        num_steps=num_steps,
        vocabulary=vocabulary,
        speculation=not no_speculation,
        dtype=dtype,
        progress=_say,
    )
    command = [*launch_prefix(), *flags]
    print(shlex.join(command), flush=True)
    if not dry_run:
        require_free_port(flags)
        require_temporary_folder()
        embedded = catalog.find(model) is not None and draft is None and vocabulary is None
        if not no_speculation and not embedded:
            check_speculation(flags)
        os.execvp(command[0], command)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
