"""`fastmtp head`: make draft heads."""

from pathlib import Path
from typing import Annotated

import typer

from fastmtp_sglang.models.license import AcceptLicense

app = typer.Typer(help="Make a draft head for a target model.", no_args_is_help=True)


@app.callback()
def head() -> None:
    """Make a draft head for a target model."""


@app.command()
def init(
    target: Annotated[
        str,
        typer.Option(help="Target: checkpoint directory, cached hub id, or built-in model."),
    ],
    out: Annotated[Path, typer.Option(help="Directory to create for the head.")],
    num_steps: Annotated[int, typer.Option(help="K, the number of tokens drafted per step.")] = 3,
    accept_license: AcceptLicense = False,
) -> None:
    """Write an untrained head: a copy of the target's last layer, ready to be trained or served."""
    from fastmtp_sglang.head.checkpoint import init_head
    from fastmtp_sglang.models import catalog

    model = catalog.find(target)
    source = Path(target) if model is None else model.checkpoint()
    init_head(source, out, num_speculative_steps=num_steps)
    print(f"wrote an untrained head with K={num_steps} to {out}")
    print(f"serve it: fastmtp serve {target} --draft {out}")
