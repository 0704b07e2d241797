"""Servers of the tests start warm: forked from a process that has imported SGLang.

Importing SGLang costs 16 seconds of a core in each of a server's three processes, and one start
more of it proves nothing. A forked server is what a started one is after its imports: the same
script runs as __main__ with its own arguments, environment, working directory and session; plugins
are found and loaded by it and by each process that it starts, which multiprocessing hands the same
pickled arguments as ever; children are its children, and signals and exit statuses go both ways.
What such a server cannot show is how SGLang and our entry points are imported: servers that are
started as users do show that (test_entry_points.py, and all tests that ask those two), and the
refusals of test_whitelist.py.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_SGLANG = Path(sys.executable).with_name("sglang")


class WarmPython:
    """A warm process, from the first command that is asked for until `stop`."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[str] | None = None
        # Addresses of sockets are short.
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._address = str(Path(self._folder.name) / "socket")

    def command(self, *arguments: str) -> list[str]:
        """What to start in place of `python ARGUMENTS`, a script or `-m MODULE`."""
        if self._process is None:
            self._start()
        client = (sys.executable, "-I", "-S", str(_HERE / "warm_client.py"))
        return [*client, self._address, *arguments]

    def launch_prefix(self) -> list[str]:
        """As `server_process.launch_prefix`."""
        return self.command(str(_SGLANG), "serve")

    def stop(self) -> None:
        """End it and what it has forked."""
        if self._process is not None:
            self._process.communicate()
        self._folder.cleanup()

    def _start(self) -> None:
        command = [sys.executable, str(_HERE / "warm_process.py"), self._address]
        # Not this one, which each server gets another value of.
        environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
                start_new_session=True,  # from Ctrl-C, upon which `stop` comes
            )
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n", self._log.read_text()[-3000:]
