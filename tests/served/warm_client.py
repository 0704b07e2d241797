"""`python -I -S warm_client.py ADDRESS ARGUMENTS`: `python ARGUMENTS`, forked from a warm process.

Hands its arguments, environment, working directory and stdio to `warm_process.py`, forwards the
signals that end a server, and ends as that process did. Imports little: it stands for a process.
"""

import json
import os
import signal
import socket
import sys
from typing import Any

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
# What a message may carry of open files; the kernel takes 253.
_MAX_FDS = 64


def send(connection: socket.socket, message: dict[str, Any], fds: list[int]) -> None:
    """Send a JSON object and open files."""
    data = json.dumps(message).encode()
    socket.send_fds(connection, [len(data).to_bytes(4, "big")], fds)
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Return the next message and its files, or None when the other end is gone."""
    size, fds, _, _ = socket.recv_fds(connection, 4, _MAX_FDS)
    if not size:
        return None
    with connection.makefile("rb") as stream:
        return json.loads(stream.read(int.from_bytes(size, "big"))), fds


def main(address: str, *arguments: str) -> int:
    """Return the exit status of the forked process, or die of the signal that it died of."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    for number in _FORWARDED:
        signal.signal(number, lambda number, _: connection.send(bytes([number])))
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    send(connection, request, [0, 1, 2])
    answer = receive(connection)
    if answer is None:
        print("the warm process has ended", file=sys.stderr)
        return 1
    status = answer[0]["status"]
    if status < 0:
        if signal.getsignal(-status) is not signal.SIG_DFL and -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
