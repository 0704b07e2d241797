"""What ends the command line with one line, and what with a traceback.

Alone: pytest tests/cli/test_cli.py
"""

import errno

import pytest

from fastmtp_sglang import cli
from fastmtp_sglang.errors import FastMTPError


@pytest.fixture
def run(monkeypatch):
    """Run `main` with a command that raises the given error."""

    def run(error: Exception) -> None:
        def app() -> None:
            raise error

        monkeypatch.setattr(cli, "app", app)
        cli.main()

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FastMTPError("--x 3: take 4"), "error: --x 3: take 4\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            "error: the disk is full ([Errno 28] No space left on device: '/data/x'). "
            "Make room and run the same command again.\n",
        ),
        (
            RuntimeError("I/O error: No space left on device (os error 28)"),
            "error: the disk is full (I/O error: No space left on device (os error 28)). "
            "Make room and run the same command again.\n",
        ),
    ],
)
def test_one_line(run, capsys, error, line):
    with pytest.raises(SystemExit) as end:
        run(error)
    assert end.value.code == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "error", [OSError(errno.EACCES, "Permission denied"), RuntimeError("os error 28?")]
)
def test_anything_else_is_a_traceback(run, error):
    with pytest.raises(type(error)):
        run(error)
