"""`fastmtp export`: a trained head as a directory to serve, or merged into its target."""

from pathlib import Path
from typing import Annotated

import typer

from fastmtp_sglang.models.license import AcceptLicense


def export(
    source: Annotated[Path, typer.Argument(help="Checkpoint of a training run, or a head.")],
    out: Annotated[Path, typer.Option(help="Directory to create.")],
    target: Annotated[str, typer.Option(help="Target checkpoint directory, or built-in model.")],
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Write a full copy of the target with this head as its MTP layer."
        ),
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="Store the head in bfloat16.")] = False,
    vocabulary: Annotated[
        Path | None, typer.Option(help="Draft vocabulary file to put beside the head.")
    ] = None,
    accept_license: AcceptLicense = False,
) -> None:
    """Write a head directory with its model card, or merge the head into the target (MiMo)."""
    from fastmtp_sglang.errors import FastMTPError
    from fastmtp_sglang.models import catalog
    from fastmtp_sglang.training.export import export_head
    from fastmtp_sglang.training.merge import merge_head

    directory = catalog.directory("--target", target)
    if merge:
        if bf16 or vocabulary:
            raise FastMTPError(
                "--merge keeps the target's dtypes and files: leave --bf16 and --vocabulary out."
            )
        merge_head(source, directory, out)
        print(f"wrote {out}, {target} with the head of {source} as its MTP layer")
        return
    export_head(source, out, target=directory, vocabulary=vocabulary, bfloat16=bf16)
    print(f"wrote {out}")
