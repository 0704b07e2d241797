"""Where a server will listen, as its flags say it, and what is refused before one starts.

A port in use is refused in tests/cli/test_serve.py. Alone: pytest tests/servers/test_address.py
"""

import os
import socket
import tempfile

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.servers import address


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], None),
        (["--port", "1"], "1"),
        (["--port=1", "--port", "2", "--porter", "3"], "2"),
        (["--port", "1", "--port=2=3"], "2=3"),
        (["--port="], ""),
        (["--port"], None),
        (["--host", "--port", "5"], "5"),
    ],
)
def test_the_last_value_counts_in_either_spelling(arguments, value):
    assert address.last_value(arguments, "--port") == value


def test_a_port_that_is_given():
    assert address.given_port(["--host", "h"]) is None
    assert address.given_port(["--port", "1", "--port=65535"]) == 65535


@pytest.mark.parametrize("text", ["0", "65536", "-1", "x", "1.5", "", "99999999999999999999"])
def test_a_port_that_is_none(text):
    with pytest.raises(FastMTPError, match=f"^--port {text}: must be a number from 1 to 65535"):
        address.given_port([f"--port={text}"])


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        (None, "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("::", "[::1]"),
        ("fe80::1", "[fe80::1]"),
        ("localhost", "localhost"),
        ("10.1.2.3", "10.1.2.3"),
    ],
)
def test_the_host_to_ask(host, asked):
    assert address.local_host([] if host is None else ["--host", host]) == asked


@pytest.mark.parametrize(
    "arguments", [["--port", "x"], ["--port", "99999"], ["--host", "no.such.host.invalid"]]
)
def test_what_only_sglang_can_judge_is_left_to_it(monkeypatch, arguments):
    def create_server(place, family):
        raise OverflowError if int(place[1]) > 65535 else socket.gaierror(-2, "unknown")

    monkeypatch.setattr(socket, "create_server", create_server)
    address.require_free_port(arguments)


def test_a_port_in_use_at_another_host(monkeypatch):
    asked = []

    def create_server(place, family):
        asked.append((place, family))
        raise OSError(address.errno.EADDRINUSE, "in use")

    monkeypatch.setattr(socket, "create_server", create_server)
    with pytest.raises(FastMTPError, match=r"--port 30000 is in use on ::1.*`-- --port N`"):
        address.require_free_port(["--host", "::1"])
    assert asked == [(("::1", 30000), socket.AF_INET6)]


def test_a_port_that_is_free_stays_free():
    """It was only asked for."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    address.require_free_port(["--port", str(port)])
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_the_longest_folder_that_sockets_allow(monkeypatch):
    """Counted in bytes; a socket of the longest name is made there, and not in a longer one."""
    longest = "/" + "x" * (address._SOCKET_PATH - address._SOCKET_NAME - 1)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: longest)
    address.require_temporary_folder()
    assert len(os.fsencode(f"{longest}/pymp-abcdefgh/listener-abcdefgh")) == address._SOCKET_PATH
    monkeypatch.setattr(tempfile, "gettempdir", lambda: longest[:-1] + "é")
    with pytest.raises(FastMTPError, match=r"TMPDIR /x+é: has 76 bytes.* allow 75: set it to a"):
        address.require_temporary_folder()


def test_no_folder_for_temporary_files(monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/a']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(FastMTPError, match=r"TMPDIR: there is no folder .*No usable.*be written"):
        address.require_temporary_folder()
