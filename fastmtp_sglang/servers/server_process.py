"""An SGLang server as a child process: started, awaited, watched, and stopped with all it started.

    with ServerProcess("/models/m", ["--dtype", "float32"], log_path=Path("server.log")) as server:
        httpx.post(f"{server.url}/generate", json=...)

The child runs `sglang serve` of this interpreter's environment in a session of its own, so that
Ctrl-C reaches only us and we stop the whole group. Standard library and httpx only.
"""

import contextlib
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from fastmtp_sglang.errors import ERROR, FastMTPError
from fastmtp_sglang.servers import http_client
from fastmtp_sglang.servers.address import (
    given_port,
    local_host,
    require_free_port,
    require_temporary_folder,
)

# Called about twice a second during the start with the seconds passed and the log's last line.
OnWait = Callable[[float, str], None]

_TAIL_LINES = 25
# Below the range from which Linux takes the ports of outgoing connections: the server binds ten
# seconds after we have looked, and until then nobody is handed this port by accident.
_PORTS = range(20_000, 32_000)
# Waits for the end of its stdin, which comes when we die, then ends the process group $0. SGLang's
# processes watch their parent too, but not in their first ten seconds.
_WATCHDOG = "read _; kill -s TERM -- -$0; sleep 10; kill -s KILL -- -$0"


def launch_prefix() -> list[str]:
    """Return the command that starts SGLang's server in this interpreter's environment.

    `sglang serve` is what SGLang recommends (`python -m sglang.launch_server` warns). It is spelled
    with the bare name where a shell would find this very script, else with its full path.
    """
    script = Path(sys.executable).with_name("sglang")
    if not script.exists():
        return [sys.executable, "-m", "sglang.launch_server"]
    found = shutil.which("sglang")
    return ["sglang" if found and Path(found) == script else str(script), "serve"]


def free_port() -> int:
    """Return a port that nobody listens on at this moment."""
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise FastMTPError(f"none of 100 ports between {_PORTS.start} and {_PORTS.stop} is free")


class ServerProcess:
    """One `sglang serve` process; a context manager whose body runs while the server answers.

    `env` is laid over this process's environment (None removes a name). A `--port` or `--host`
    among `args` wins, as it does for the server. Without `log_path` the log is a temporary file
    that survives only a failure. A watchdog process ends the server even when this process is
    killed.
    """

    def __init__(
        self,
        model: str | Path,
        args: Sequence[str] = (),
        *,
        env: Mapping[str, str | None] | None = None,
        log_path: Path | None = None,
        port: int | None = None,
        start_timeout: float = 600.0,
        on_wait: OnWait | None = None,
    ) -> None:
        self.port = given_port(args) or port or free_port()
        self.url = f"http://{local_host(args)}:{self.port}"
        self.command = [
            *launch_prefix(),
            *("--model-path", str(model), "--host", "127.0.0.1", "--port", str(self.port)),
            *args,
        ]
        self._env = {**os.environ, **(env or {})}
        self._keep_log = log_path is not None
        self._log_path = log_path
        self._start_timeout = start_timeout
        self._on_wait = on_wait
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._drop_log(error)

    @property
    def log_path(self) -> Path:
        """Where the server's stdout and stderr go."""
        if self._log_path is None:
            handle, name = tempfile.mkstemp(prefix="fastmtp-server-", suffix=".log")
            os.close(handle)
            self._log_path = Path(name)
        return self._log_path

    @property
    def pid(self) -> int | None:
        """Process id of the server's first process, None before the start and after the stop."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the server and return when it is healthy.

        Raises FastMTPError with the end of the log when the server ends first or takes longer than
        `start_timeout` seconds; it is stopped then, as it is on any other exception.
        """
        if self._process is not None:
            raise RuntimeError("this server is already running")
        require_temporary_folder()
        require_free_port(self.command)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={name: value for name, value in self._env.items() if value is not None},
                start_new_session=True,
            )
        try:
            self._watchdog = subprocess.Popen(
                ["sh", "-c", _WATCHDOG, str(self._process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._await_health()
        except BaseException as error:
            self.stop()
            self._drop_log(error)
            raise

    def stop(self, timeout: float = 20.0) -> None:
        """End the server and everything that it started; does nothing when it is not running.

        SIGTERM first, on which SGLang finishes its requests; SIGKILL after `timeout` seconds.
        """
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout)
        finally:
            # On a second Ctrl-C too, and when the first process is gone: its schedulers may not be.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if self._watchdog is not None:
                self._watchdog.kill()  # before its stdin closes: there is nothing left to end
                self._watchdog.communicate()
                self._watchdog = None

    def check_alive(self) -> None:
        """Raise FastMTPError with the end of the log if the server has ended by itself."""
        code = self._process.poll() if self._process else None
        if code is None:
            return
        last = self.log_tail(1)
        if last.startswith(ERROR):  # of our plugin in it, which refuses to start
            raise FastMTPError(f"{last.removeprefix(ERROR)} (log: {self.log_path})")
        raise FastMTPError(self._describe(f"the server ended with exit code {code}"))

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """Return the last lines of the log."""
        with self.log_path.open("rb") as log:
            log.seek(max(0, self.log_path.stat().st_size - 400 * lines))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])

    def _drop_log(self, error: BaseException | None) -> None:
        """Remove a temporary log, unless it may tell what went wrong (Ctrl-C is not that)."""
        if not self._keep_log and not isinstance(error, Exception):
            self.log_path.unlink(missing_ok=True)

    def _await_health(self) -> None:
        began = time.monotonic()
        # SGLang answers after generating one token, which takes it a second at least.
        with http_client.client(None, 30, [self.url]) as client:
            while not self._healthy(client):
                self.check_alive()
                waited = time.monotonic() - began
                if waited > self._start_timeout:
                    raise FastMTPError(
                        self._describe(f"the server was not ready after {waited:.0f} seconds")
                    )
                if self._on_wait:
                    self._on_wait(waited, self.log_tail(1))
                time.sleep(0.2)

    def _healthy(self, client: httpx.Client) -> bool:
        try:
            return client.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    def _describe(self, what: str) -> str:
        return (
            f"{what}; command: {shlex.join(self.command)}\n"
            f"the end of its log {self.log_path}:\n{self.log_tail()}"
        )
