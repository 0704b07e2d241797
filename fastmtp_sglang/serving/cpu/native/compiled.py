"""Compile once: machine code is kept on disk, where a directory can be written.

The cache is named by all that decides the code: the sources of this room, numba and the processor.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.cache import directory as cache_directory
from fastmtp_sglang.serving.cpu.native import ahead


def operator(function: Callable[..., None]) -> Any:
    """Compile an operator of a sweep; its `address` is what a list of operators holds.

    Its arguments, all int64: address of its fields, rows, address of the pass, of this worker's
    scratch memory, and from which part to which it shall compute.
    """
    return _cached(numba.cfunc, numba.types.void(*[numba.types.int64] * 6))(function)


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function of this one signature, to run without the interpreter's lock."""
    return _cached(functools.partial(numba.njit, nogil=True), [signature])


def helper(function: Callable[..., Any]) -> Any:
    """Compile a function that only operators call: without wrappers, which take as long."""
    return numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


def _cached(compiler: Any, signature: Any) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        folder = cache_folder()
        if folder is not None:
            ahead.wait(Path(folder))
        # numba asks for the directory while a function is decorated; other people's functions keep
        # theirs.
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = folder or ""
        try:
            # Division by zero gives infinity, as in numpy, instead of a branch to an exception.
            return compiler(signature, cache=folder is not None, error_model="numpy")(function)
        finally:
            numba.config.CACHE_DIR = before

    return decorate


@cache
def cache_folder() -> str | None:
    """Where machine code is kept, or None where nothing can be written."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    host = f"{llvm.get_host_cpu_name()} {llvm.get_host_cpu_features().flatten()}"
    digest.update(f"{numba.__version__} {llvmlite.__version__} {host}".encode())
    try:
        folder = cache_directory() / "native" / digest.hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except (OSError, FastMTPError):
        return None
