"""The command `fastmtp`: one module a command, and nothing heavy imported until one runs."""

import sys

import typer

from fastmtp_sglang.cli import bench, data, demo, distill, doctor, export, head, serve, train, vocab
from fastmtp_sglang.errors import FastMTPError

app = typer.Typer(
    name="fastmtp",
    help="Lossless multi-token-prediction decoding on the stock SGLang wheel.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
app.command("distill")(distill.distill)
app.command("doctor")(doctor.doctor)
app.command("train")(train.train)
app.command("export")(export.export)
app.add_typer(bench.app, name="bench")
app.add_typer(data.app, name="data")
app.add_typer(head.app, name="head")
app.add_typer(vocab.app, name="vocab")


def main() -> None:
    """Run the command line; a FastMTPError becomes one line on stderr and exit code 2."""
    try:
        app()
    except FastMTPError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
