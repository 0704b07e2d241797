"""Where a server will listen, as its flags say it, and whether it can."""

import errno
import os
import socket
import tempfile
from collections.abc import Sequence
from itertools import zip_longest

from fastmtp_sglang.errors import FastMTPError

_SGLANG_PORT = "30000"
# Of the path of a Unix socket (Linux, sun_path), and the longest name that Python and SGLang give
# one below the folder of temporary files: /pymp-abcdefgh/listener-abcdefgh.
_SOCKET_PATH, _SOCKET_NAME = 107, 32


def last_value(arguments: Sequence[str], flag: str) -> str | None:
    """What SGLang's parser takes for `flag`: the last one given, in either spelling."""
    value = None
    for given, following in zip_longest(arguments, arguments[1:]):
        if given == flag:
            value = following
        elif given.startswith(f"{flag}="):
            value = given.removeprefix(f"{flag}=")
    return value


def given_port(arguments: Sequence[str]) -> int | None:
    """The port that flags of `sglang serve` name, None without; raises FastMTPError."""
    text = last_value(arguments, "--port")
    if text is None:
        return None
    if not text.isdecimal() or not 0 < int(text) < 2**16:
        raise FastMTPError(f"--port {text}: must be a number from 1 to 65535")
    return int(text)


def local_host(arguments: Sequence[str]) -> str:
    """The host to ask a server on this machine by, ready for a URL: where it listens, or loopback.

    `arguments` are those of `sglang serve`.
    """
    host = last_value(arguments, "--host") or "127.0.0.1"
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"[{host}]" if ":" in host else host


def require_free_port(arguments: Sequence[str]) -> None:
    """Refuse a port that another server has: SGLang would load the model before it finds out.

    `arguments` are those of `sglang serve`. Raises FastMTPError.
    """
    port = last_value(arguments, "--port")
    if port is None and last_value(arguments, "--config") is not None:
        return  # the file may name one
    host, port = last_value(arguments, "--host") or "127.0.0.1", port or _SGLANG_PORT
    if not port.isdecimal():
        return  # SGLang says what is wrong with it
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, int(port)), family=family).close()
    except (OSError, OverflowError) as error:
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise FastMTPError(
                f"--port {port} is in use on {host}, maybe by another server: "
                "choose another with `-- --port N`."
            ) from error


def require_temporary_folder() -> None:
    """Refuse a folder for temporary files that there is none of, or too long for SGLang's sockets.

    Its processes talk through files there, and would end with a traceback. Raises FastMTPError.
    """
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise FastMTPError(
            f"TMPDIR: there is no folder for temporary files ({error.strerror}): set it to one "
            "that can be written"
        ) from error
    longest = _SOCKET_PATH - _SOCKET_NAME
    if len(os.fsencode(folder)) > longest:
        raise FastMTPError(
            f"TMPDIR {folder}: has {len(os.fsencode(folder))} bytes, and the sockets of a server "
            f"there allow {longest}: set it to a shorter one, such as /tmp"
        )
