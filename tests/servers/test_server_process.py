"""The server helper against a stand-in for `sglang serve`: start, wait, death, stop, no orphans.

Alone: pytest tests/servers/test_server_process.py
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.servers import server_process
from fastmtp_sglang.servers.server_process import ServerProcess

pytestmark = pytest.mark.heavy

FAKE = Path(__file__).parents[1] / "fake_sglang.py"


@pytest.fixture(autouse=True)
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(server_process, "launch_prefix", lambda: [sys.executable, str(FAKE)])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_serves_inside_the_block(tmp_path):
    log = tmp_path / "log"
    with ServerProcess("/m o/d", ["--dtype", "float32"], log_path=log) as server:
        assert httpx.get(f"{server.url}/health").status_code == 200
        pid = server.pid
        assert pid is not None
    assert not alive(pid)
    assert server.pid is None
    assert "--model-path /m o/d --host 127.0.0.1 --port" in log.read_text()
    assert "--dtype float32" in log.read_text()


def test_waits_and_reports(tmp_path):
    said = []
    with ServerProcess(
        "m",
        env={"FAKE_SECONDS": "1.2"},
        on_wait=lambda seconds, line: said.append((seconds, line)),
    ):
        pass
    assert said[-1][0] >= 0.5
    assert "fake server with" in said[-1][1]


@pytest.mark.parametrize("spelling", ["--port {}", "--port={}", "--port 1 --port {}"])
def test_a_port_among_the_flags_is_the_one_that_is_asked(spelling):
    port = server_process.free_port()
    with ServerProcess("m", spelling.format(port).split()) as server:
        assert (server.port, server.url) == (port, f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("host", "asked"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("192.0.2.7", "192.0.2.7")],
)
def test_a_host_among_the_flags_is_the_one_that_is_asked(host, asked):
    assert ServerProcess("m", ["--host", host], port=7).url == f"http://{asked}:7"


def test_a_port_that_another_server_has_is_refused_before_the_start():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = ServerProcess("m", ["--port", str(port)])
        with pytest.raises(FastMTPError, match=f"--port {port} is in use"):
            server.start()
    with pytest.raises(FastMTPError, match="--port x: must be a number from 1 to 65535"):
        ServerProcess("m", ["--port", "x"])


def test_a_folder_for_temporary_files_that_sockets_cannot_be_in(monkeypatch):
    folder = "/" + "x" * 90
    monkeypatch.setattr(tempfile, "tempdir", folder)
    with pytest.raises(FastMTPError, match=f"TMPDIR {folder}: has 91 bytes.* allow 75"):
        ServerProcess("m").start()


def test_environment_is_laid_over_ours(monkeypatch):
    monkeypatch.setenv("FAKE_DIES", "1")
    with ServerProcess("m", env={"FAKE_DIES": None}):
        pass


def test_a_refusal_of_the_plugin_is_one_line():
    server = ServerProcess("m", env={"FAKE_REFUSES": "--flag 3: not with FASTMTP"})
    with pytest.raises(FastMTPError, match=r"^--flag 3: not with FASTMTP \(log: .*\.log\)$"):
        server.start()


def test_a_death_shows_the_log():
    server = ServerProcess("m", env={"FAKE_DIES": "1"})
    with pytest.raises(FastMTPError) as error:
        server.start()
    assert "the server ended with exit code 3" in str(error.value)
    assert "ValueError: this flag is wrong" in str(error.value)
    assert "--model-path m" in str(error.value)
    assert server.log_path.exists()


def test_a_late_death_is_noticed():
    with ServerProcess("m", env={"FAKE_DIES_AFTER": "2"}) as server:
        server.check_alive()
        wait_until(lambda: not alive(server.pid))
        with pytest.raises(FastMTPError, match="exit code 5"):
            server.check_alive()


def test_a_start_that_takes_too_long_is_stopped():
    server = ServerProcess("m", env={"FAKE_SECONDS": "60"}, start_timeout=1)
    with pytest.raises(FastMTPError, match="was not ready after 1 seconds"):
        server.start()
    assert server.pid is None


def test_ctrl_c_during_the_start_stops_it():
    def interrupt(seconds: float, line: str) -> None:
        raise KeyboardInterrupt

    server = ServerProcess("m", env={"FAKE_SECONDS": "60"}, on_wait=interrupt)
    pids = []
    original = server.stop
    server.stop = lambda: (pids.append(server.pid), original())
    with pytest.raises(KeyboardInterrupt):
        server.start()
    assert not alive(pids[0])
    assert not server.log_path.exists()


def test_stop_takes_children_that_ignore_sigterm():
    with ServerProcess("m", env={"FAKE_DEAF_CHILD": "1"}) as server:
        child = int(server.log_tail().split("child ")[1].split()[0])
        assert alive(child)
    wait_until(lambda: not alive(child))


def test_stop_kills_after_its_timeout():
    server = ServerProcess("m", env={"FAKE_IGNORES_TERM": "1"})
    server.start()
    pid = server.pid
    began = time.monotonic()
    server.stop(timeout=0.5)
    assert time.monotonic() - began < 5
    assert not alive(pid)
    server.stop()  # a second stop does nothing


def test_temporary_log_goes_with_success_and_stays_with_failure():
    with ServerProcess("m") as server:
        path = server.log_path
        assert path.exists()
    assert not path.exists()
    server = ServerProcess("m")
    with pytest.raises(ZeroDivisionError), server:
        1 / 0  # noqa: B018
    assert server.log_path.exists()


KILLED_PARENT = """
import os, signal, sys
from fastmtp_sglang.servers import server_process
server_process.launch_prefix = lambda: [sys.executable, sys.argv[1]]
server = server_process.ServerProcess("m")
server.start()
print(server.pid, server.log_tail().split("child ")[1], server.log_path, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_parent_leaves_no_server():
    parent = subprocess.run(
        [sys.executable, "-c", KILLED_PARENT, str(FAKE)],
        capture_output=True,
        text=True,
        env={**os.environ, "FAKE_DEAF_CHILD": "1"},
    )
    assert parent.returncode == -signal.SIGKILL
    server, child, log = parent.stdout.split()
    wait_until(lambda: not alive(int(server)))
    wait_until(lambda: not alive(int(child)), seconds=20)
    os.unlink(log)


def test_the_watchdog_goes_with_the_server():
    with ServerProcess("m") as server:
        watchdog = server._watchdog.pid
        assert alive(watchdog)
    assert not alive(watchdog)


def test_free_port_can_be_bound():
    port = server_process.free_port()
    assert port in server_process._PORTS
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", port))


def test_free_port_passes_over_a_taken_one(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr(server_process.random, "sample", lambda *_: [port])
        with pytest.raises(FastMTPError, match="is free"):
            server_process.free_port()


def test_the_command_is_this_environments_sglang(monkeypatch, tmp_path):
    monkeypatch.undo()
    script = Path(sys.executable).with_name("sglang")
    assert script.exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert server_process.launch_prefix() == [str(script), "serve"]
    monkeypatch.setenv("PATH", str(script.parent))
    assert server_process.launch_prefix() == ["sglang", "serve"]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert server_process.launch_prefix() == [sys.executable, "-m", "sglang.launch_server"]
