"""`fastmtp train`: train a head for a target from a YAML configuration."""

from pathlib import Path
from typing import Annotated

import typer

from fastmtp_sglang.models.license import AcceptLicense


def train(
    config: Annotated[Path, typer.Argument(help="YAML file, see configs/train.")],
    target: Annotated[
        str | None, typer.Option(help="Target checkpoint directory, or built-in model.")
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(help="Record file or folder of `fastmtp distill`. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints, logs and the head.")
    ] = None,
    offline: Annotated[
        Path | None,
        typer.Option(help="Folder of stored hidden states: made if missing, then read."),
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="`scratch`, `fitted`, `native` or an earlier head directory.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of the configuration."),
    ] = None,
    accept_license: AcceptLicense = False,
) -> None:
    """Train a head by self-distillation.

    On several GPUs: `accelerate launch $(which fastmtp) train CONFIG`. Flags win over the file. The
    finished head is OUTPUT/head. A killed run goes on with the same command.
    """
    from fastmtp_sglang.files.outputs import check_output_folder
    from fastmtp_sglang.training.config import load_config

    flags = {
        "target": target,
        "output": output,
        "data.train": data,
        "data.offline": offline,
        "head.start": start,
    }
    # An empty text is what was typed, such as "$UNSET": it must not mean what the file says.
    given = {key: value for key, value in flags.items() if value not in (None, [])}
    loaded = load_config(config, overrides or (), given)
    check_output_folder("output", loaded.output)

    from accelerate import PartialState

    from fastmtp_sglang.training.run import train as run

    head = run(loaded)
    state = PartialState()
    state.print(f"wrote {head}")
    state.print(f"serve it: fastmtp serve {loaded.target} --draft {head}")
