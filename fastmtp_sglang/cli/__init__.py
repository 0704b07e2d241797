"""The command `fastmtp`: one module a command, and nothing heavy imported until one runs."""

import errno
import sys
from typing import NoReturn

import typer

from fastmtp_sglang.cli import bench, data, demo, distill, doctor, export, head, serve, train, vocab
from fastmtp_sglang.errors import ERROR, FastMTPError

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
    """Run the command line; what the user can mend becomes one line on stderr and exit code 2.

    That is a FastMTPError, and a full disk, which any writer may meet in the middle of its work.
    """
    try:
        app()
    except FastMTPError as error:
        _end(str(error))
    except Exception as error:
        if not _disk_is_full(error):
            raise
        _end(f"the disk is full ({error}). Make room and run the same command again.")


def _end(message: str) -> NoReturn:
    print(f"{ERROR}{message}", file=sys.stderr)
    sys.exit(2)


def _disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors and tokenizers write from Rust, whose errors carry the number in their words.
    return f"(os error {errno.ENOSPC})" in str(error)
