"""A start that FASTMTP refuses ends in one line, as any other wrong argument of a command does.

SGLang asks us deep inside its start-up, so Python would print thirty lines of its frames first.
"""

import sys
from pathlib import Path
from types import TracebackType

from fastmtp_sglang.errors import ERROR, FastMTPError

# `sglang serve` and `python -m sglang.launch_server`; who starts an Engine keeps the traceback.
_COMMANDS = ("sglang", "launch_server.py")


def install() -> None:
    """Let uncaught FastMTPErrors of a server's command print their message alone; idempotent."""
    before = sys.excepthook
    if Path(sys.argv[0]).name not in _COMMANDS or before.__module__ == __name__:
        return

    def show(
        kind: type[BaseException], error: BaseException, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, FastMTPError):
            print(f"{ERROR}{error}", file=sys.stderr)
        else:
            before(kind, error, traceback)

    sys.excepthook = show
