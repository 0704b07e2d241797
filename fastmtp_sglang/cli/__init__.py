"""The command `fastmtp`: one module a command, and nothing heavy imported until one runs."""

import errno
import io
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

    That is a FastMTPError, a file that the system refuses (a permission, a name that is too long),
    and a full disk, which any writer may meet in the middle of its work.
    """
    # The name of a file need not be UTF-8, and a line about it shall not end the work.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except FastMTPError as error:
        _end(str(error))
    except Exception as error:
        if _disk_is_full(error):
            _end(f"the disk is full ({error}). Make room and run the same command again.")
        if not isinstance(error, OSError) or error.filename is None:
            raise
        _end(f"{error.filename}: {error.strerror}")


def _end(message: str) -> NoReturn:
    print(f"{ERROR}{message}", file=sys.stderr)
    sys.exit(2)


def _disk_is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors and tokenizers write from Rust, whose errors carry the number in their words.
    return f"(os error {errno.ENOSPC})" in str(error)
