"""The check that the SGLang names which we depend on (`hooks`) are still what we know.

It reads SGLang's sources (no import: every process runs it at start-up) and compares each hook's
parameters with the table. An SGLang release that renames one is then refused with one clear
message at registration, instead of failing in the middle of serving.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastmtp_sglang.contract.hooks import HOOKS, Hook

SUPPORTED = ">=0.5.23,<0.6"
# A release in that range whose hooks differ is mended by going back to this one.
TESTED = "0.5.23"


@dataclass(frozen=True)
class Mismatch:
    """A hook that the installed SGLang lacks or has in another form."""

    hook: Hook
    found: str

    def __str__(self) -> str:
        parameters = self.hook.parameters
        expected = "" if parameters is None else f"({', '.join(parameters.split())})"
        return f"{self.hook.path}{expected} [{self.hook.kind}]: {self.found}"


def check() -> list[Mismatch]:
    """Compare the installed SGLang with the table; an empty list means that all hooks match."""
    return [Mismatch(hook, found) for hook in HOOKS if (found := _difference(hook)) is not None]


def report(mismatches: list[Mismatch]) -> str:
    """One message with SGLang's version, each mismatch and the way out."""
    version = importlib.metadata.version("sglang")
    lines = "\n".join(f"  {mismatch}" for mismatch in mismatches)
    return (
        f"fastmtp-sglang does not know SGLang {version}; --speculative-algorithm fastmtp is not "
        f"registered and SGLang runs without it. What differs:\n{lines}\n"
        f"Install the SGLang that it was tested with (pip install 'sglang=={TESTED}') or a newer "
        "fastmtp-sglang (pip install -U fastmtp-sglang)."
    )


def _difference(hook: Hook) -> str | None:
    module, name = hook.path.split(":")
    names = _definitions(module, name.partition(".")[0])
    if names is None:
        return "the module is missing"
    if name not in names:
        return "missing"
    if hook.parameters is None:
        return None
    expected, actual = tuple(hook.parameters.split()), names[name]
    if actual is None:
        return "no longer a function"
    if actual[: len(expected)] != expected:
        return f"now takes ({', '.join(actual)})"
    return None


@cache
def _definitions(module: str, top: str | None = None) -> dict[str, tuple[str, ...] | None] | None:
    """Parameters of each function and method of a module by qualified name, None for the rest.

    With `top`, at least of that class or function and what is in it.
    """
    path = _source(module)
    if path is None:
        return None
    found: dict[str, tuple[str, ...] | None] = {}
    for node in _parse(path.read_text(), top):
        _collect(node, "", found)
    return found


def _parse(source: str, top: str | None) -> list[ast.stmt]:
    """The statements of a source, or only those that define `top` at its first level.

    Whole files take twice as long, in every process: one of them has 260 kB.
    """
    if top is not None:
        # Each from its first line up to the next line that begins in the first column.
        blocks = re.findall(
            rf"^(?:class|def|async def) {top}\b.*?(?=^[^\s)#]|\Z)", source, re.MULTILINE | re.DOTALL
        )
        # A string that reaches into the first column ends a block too early.
        with suppress(SyntaxError):
            if blocks:
                return ast.parse("".join(blocks)).body
    return ast.parse(source).body


def _collect(node: ast.stmt, prefix: str, found: dict[str, tuple[str, ...] | None]) -> None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        arguments = node.args
        names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        found[prefix + node.name] = tuple(n for n in names if n not in ("self", "cls"))
    elif isinstance(node, ast.ClassDef):
        found[prefix + node.name] = None
        for child in node.body:
            _collect(child, f"{prefix}{node.name}.", found)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                found[prefix + target.id] = None
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        found[prefix + node.target.id] = None
    elif isinstance(node, ast.If | ast.Try):
        for branch in ast.iter_child_nodes(node):
            if isinstance(branch, ast.stmt):
                _collect(branch, prefix, found)


def _source(module: str) -> Path | None:
    spec = importlib.util.find_spec("sglang")
    if spec is None or spec.origin is None:
        return None
    base = Path(spec.origin).parent.joinpath(*module.split(".")[1:])
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.exists():
            return candidate
    return None
