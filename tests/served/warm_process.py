"""`python warm_process.py ADDRESS`: has imported SGLang, and forks for each `warm_client.py`.

Imports what SGLang's processes import, listens on the Unix socket ADDRESS, says so on stdout, and
forks a process for each client; ends with all of them when its stdin does. It has one thread, has
loaded no plugin and computed nothing. Environment variables that its imports have read must have
the same value in a forked process, or that is refused.
"""

import contextlib
import ctypes
import gc
import importlib
import multiprocessing.spawn
import multiprocessing.util
import os
import runpy
import selectors
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from warm_client import receive, send

_IMPORTS = (
    "sglang.cli.serve",
    "sglang.launch_server",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.models.registry",
    "numba",
)
# Of these, libraries read more than Python sees.
_READ_BY_LIBRARIES = ("OMP_", "GOMP_", "KMP_", "MKL_")
# Module and constant that an import has made of a variable, and that a fork makes anew.
_CONSTANTS = {"SGLANG_TEST_RETRACT": ("sglang.srt.managers.scheduler", "TEST_RETRACT")}
# The size of a terminal, which some import sets in the process of the tests.
_HARMLESS = {"COLUMNS", "LINES"}
# SGLang starts a scheduler and a detokenizer; others get an interpreter of their own.
_WAITING = 2
_PR_SET_PDEATHSIG = 1

Environment = dict[str, str]


@dataclass(frozen=True)
class Imports:
    """The environment before the imports, what they have read of it, and what they have set."""

    before: Environment
    read: set[str]
    changes: Environment

    def differing(self, environment: Environment) -> list[str]:
        """Names of variables that have come too late for a process that is forked."""
        names = self.read - _CONSTANTS.keys() - _HARMLESS
        names |= {n for n in {*self.before, *environment} if n.startswith(_READ_BY_LIBRARIES)}
        return sorted(n for n in names if environment.get(n) != self.before.get(n))


def import_all() -> Imports:
    before, read = {**os.environ}, set()
    environ: Any = type(os.environ)
    original = environ.__getitem__

    def recorded(self: Any, name: str) -> str:
        read.add(name)
        return original(self, name)

    environ.__getitem__ = recorded
    try:
        for name in _IMPORTS:
            importlib.import_module(name)
    finally:
        environ.__getitem__ = original
    changes = {name: value for name, value in os.environ.items() if before.get(name) != value}
    return Imports(before, read, changes)


class Forks:
    """The processes that were forked for clients, and what happens to either."""

    def __init__(self, listener: socket.socket, imports: Imports) -> None:
        self._listener, self._imports = listener, imports
        self._selector = selectors.DefaultSelector()
        # Of each process: its pidfd, and its client until that is gone.
        self._processes: dict[int, tuple[int, socket.socket]] = {}

    def serve(self) -> dict[str, Any]:
        """Returns only in a forked process, with what its client has asked for."""
        self._selector.register(0, selectors.EVENT_READ, self._end_all)
        self._selector.register(self._listener, selectors.EVENT_READ, self._fork)
        while True:
            for key, _ in self._selector.select():
                request = key.data()
                if request is not None:
                    return request

    def _fork(self) -> dict[str, Any] | None:
        client, _ = self._listener.accept()
        message = receive(client)
        if message is None:
            return None
        request, fds = message
        if names := self._imports.differing(request["environment"]):
            os.write(fds[2], f"read by imports with another value: {', '.join(names)}\n".encode())
            send(client, {"status": 1}, [])
            return None
        pid = os.fork()
        if pid == 0:
            for key in list(self._selector.get_map().values()):
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
                elif key.fd != 0:
                    os.close(key.fd)
            self._selector.close()
            client.close()
            environment = {**request.pop("environment"), **self._imports.changes}
            return {**request, "environment": environment, "fds": fds}
        for fd in fds:
            os.close(fd)
        pidfd = os.pidfd_open(pid)
        self._processes[pid] = pidfd, client
        self._selector.register(pidfd, selectors.EVENT_READ, lambda: self._ended(pid))
        self._selector.register(client, selectors.EVENT_READ, lambda: self._told(pid))
        return None

    def _told(self, pid: int) -> None:
        """A client asks for signals, or is gone."""
        client = self._processes[pid][1]
        numbers = client.recv(16)
        for number in numbers:
            os.kill(pid, number)
        if not numbers:
            self._selector.unregister(client)
            _kill(pid)

    def _ended(self, pid: int) -> None:
        pidfd, client = self._processes.pop(pid)
        _kill(pid)  # what it has left behind
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self._selector.unregister(pidfd)
        os.close(pidfd)
        with contextlib.suppress(KeyError):
            self._selector.unregister(client)
        with contextlib.suppress(BrokenPipeError):
            send(client, {"status": status}, [])
        client.close()

    def _end_all(self) -> NoReturn:
        for pid in self._processes:
            _kill(pid)
        sys.exit()


def _kill(pid: int) -> None:
    """End a process and its group, which it may not have founded yet."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def become(arguments: list[str], environment: Environment, folder: str, fds: list[int]) -> None:
    """Run as `python ARGUMENTS` (a script, or -m and a module) would, in a session of its own."""
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(folder)
    _set(environment)
    _start_children_from(_waiting_children())
    is_module = arguments[0] == "-m"
    sys.argv = arguments[1:] if is_module else arguments
    sys.path.insert(0, folder if is_module else str(Path(arguments[0]).parent))
    if is_module:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(sys.argv[0], run_name="__main__")


def _set(environment: Environment) -> None:
    import numpy
    from sglang.srt.environ import envs

    os.environ.clear()
    os.environ.update(environment)
    for name, (module, constant) in _CONSTANTS.items():
        setattr(sys.modules[module], constant, getattr(envs, name).get())
    numpy.random.seed()


def _waiting_children() -> list[tuple[int, socket.socket]]:
    """Fork processes that wait for what they shall do; the caller's, and as fresh as it is now."""
    children: list[tuple[int, socket.socket]] = []
    for _ in range(_WAITING):
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            for _, other in [*children, (0, ours)]:
                other.close()
            _wait(theirs)
        theirs.close()
        children.append((pid, ours))
    return children


def _wait(channel: socket.socket) -> NoReturn:
    """Become a process that multiprocessing spawns, as its command line says."""
    message = receive(channel)
    if message is None:
        os._exit(0)
    request, fds = message
    channel.close()
    # Out of the way first: the numbers that they are to have may be among those that they have.
    top = max([*fds, *request["numbers"]]) + 1
    for place, fd in enumerate(fds):
        os.dup2(fd, top + place)
        os.close(fd)
    for place, number in enumerate(request["numbers"]):
        os.dup2(top + place, number)
        os.close(top + place)
    _set(request["environment"])
    code, *sys.argv[1:] = request["arguments"]
    sys.argv[0] = "-c"
    exec(code, {"__name__": "__main__"})
    sys.exit()


def _start_children_from(waiting: list[tuple[int, socket.socket]]) -> None:
    """Let multiprocessing's "spawn" use waiting processes, where it would start an interpreter."""
    original = multiprocessing.util.spawnv_passfds

    def spawn(path: bytes, arguments: list[str], fds: list[int]) -> int:
        if arguments[-1] != "--multiprocessing-fork" or not waiting:
            return original(path, arguments, fds)
        pid, channel = waiting.pop(0)
        numbers = sorted(set(fds))
        code_and_rest = arguments[arguments.index("-c") + 1 :]
        request = {"arguments": code_and_rest, "numbers": numbers, "environment": {**os.environ}}
        with channel:
            send(channel, request, numbers)
        return pid

    multiprocessing.util.spawnv_passfds = spawn


def main(address: str) -> None:
    del sys.path[0]  # the folder of the tests, where a server would not look
    imports = import_all()
    threads = os.listdir("/proc/self/task")
    assert len(threads) == 1, f"imports have started {len(threads) - 1} threads"
    gc.collect()
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        request = Forks(listener, imports).serve()
    become(**request)


if __name__ == "__main__":
    main(sys.argv[1])
