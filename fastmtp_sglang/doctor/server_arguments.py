"""What SGLang and FASTMTP would say to the arguments of a server, without starting it.

`check` asks a process of its own (this module, run), since SGLang's resolution of arguments changes
the process that does it. Nothing of a model but its configuration and tokenizer is read.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence

from fastmtp_sglang.contract import limits
from fastmtp_sglang.contract.identity import is_ours
from fastmtp_sglang.errors import FastMTPError

# Before the one line of the process that is its answer; SGLang prints others.
_MARK = "fastmtp doctor: "


def check(arguments: Sequence[str]) -> list[str]:
    """Every reason for which `sglang serve` would refuse these arguments, the way out at its end.

    Args:
        arguments: as they follow `sglang serve`.
    """
    result = subprocess.run(
        [sys.executable, "-m", __name__, *arguments], capture_output=True, text=True, check=False
    )
    for line in result.stdout.splitlines():
        if line.startswith(_MARK):
            return list(json.loads(line.removeprefix(_MARK)))
    last = (result.stderr.strip().splitlines() or ["no message"])[-1]
    return [f"{last}. `sglang serve --help` lists the flags."]


def _refusals(arguments: list[str]) -> Iterator[str]:
    """All that our tables refuse, or the first that SGLang does."""
    import argparse

    from sglang.srt.platforms import current_platform
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    parser = argparse.ArgumentParser(prog="sglang serve")
    ServerArgs.add_cli_args(parser)
    server_args = ServerArgs.from_cli_args(parser.parse_args(arguments))
    refused = []
    if is_ours(server_args.speculative_algorithm):
        refused += limits.refusals(server_args, limits.LIMITS)
    if current_platform.is_out_of_tree() and current_platform.device_type == "cpu":
        refused += limits.refusals(server_args, limits.ON_A_CPU)
    yield from refused
    if not refused:
        try:
            server_args.resolve_once()
            server_args.check_server_args()
        except (FastMTPError, ValueError, AssertionError, OSError) as error:
            yield " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    print(_MARK + json.dumps(list(_refusals(sys.argv[1:]))))
