"""The picture of imports: three wings over one core, no circle, one job a file.

Read from the sources, deferred imports included.
Alone: pytest tests/repository/test_architecture.py
"""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "fastmtp_sglang": ROOT / "fastmtp_sglang",
    "fastmtp_benchmarks": ROOT / "benchmarks",
    "fastmtp_kernels": ROOT / "kernels",
}
# Folder of the package -> its wing; a folder that is not named belongs to the core.
WINGS = {
    "serving": "serving",
    "training": "training",
    "distill": "training",
    "cli": "cli",
    "doctor": "cli",
}
# `benchmarks.stages` measures the stages of a decoding step from inside: its subject is our worker.
MEASURES_SERVING = "fastmtp_benchmarks.stages"
# About one page; a table may take more.
MAX_LINES = 400


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str) -> Iterator[str]:
    """The modules of ours that a module imports anywhere in its source, but for type checking."""
    tree = ast.parse(modules()[name].read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in modules():
                    yield full
                elif node.module in modules():
                    yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())


@cache
def arrows() -> dict[str, set[str]]:
    # A room's __init__ is no dependency where all that it holds is a docstring or the version.
    return {name: set(imported(name)) - {"fastmtp_sglang"} for name in modules()}


def wing(name: str) -> str:
    """core, serving, training, benchmarks, kernels or cli."""
    package, _, rest = name.partition(".")
    if package != "fastmtp_sglang":
        return {"fastmtp_benchmarks": "benchmarks", "fastmtp_kernels": "kernels"}[package]
    return WINGS.get(rest.partition(".")[0], "core")


ALLOWED = {
    "kernels": set(),
    "core": {"kernels"},
    "serving": {"core", "kernels"},
    "training": {"core", "kernels"},
    "benchmarks": {"core", "kernels"},
    "cli": {"core", "serving", "training", "benchmarks", "kernels"},
}


def test_the_modules_are_found():
    assert {wing(name) for name in modules()} == set(ALLOWED)
    assert "fastmtp_sglang.head.module" in arrows()["fastmtp_sglang.training.model"]
    folders = {path.name for path in PACKAGES["fastmtp_sglang"].iterdir() if path.is_dir()}
    assert folders >= set(WINGS)


def test_every_file_lies_in_a_room():
    """What lies at the top of the package belongs to all of it."""
    flat = {path.name for path in PACKAGES["fastmtp_sglang"].glob("*.py")}
    assert flat == {"__init__.py", "errors.py"}


def test_arrows_point_to_the_core():
    wrong = {
        (name, target)
        for name, targets in arrows().items()
        for target in targets
        if wing(target) not in {wing(name), *ALLOWED[wing(name)]}
    }
    measured = {(name, target) for name, target in wrong if name == MEASURES_SERVING}
    assert {wing(target) for _, target in measured} == {"serving"}
    assert wrong == measured


def test_no_circles():
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for target in sorted(arrows()[name]):
                visit(target, (*above, name))
            done.add(name)

    for name in sorted(modules()):
        visit(name, ())


def test_kernels_need_torch_and_triton_only():
    allowed = {"torch", "triton", "fastmtp_kernels", *sys.stdlib_module_names}
    for name, path in modules().items():
        if wing(name) != "kernels":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            assert {n.partition(".")[0] for n in names} <= allowed, name


def test_one_job_a_file():
    sources = {name: path.read_text() for name, path in modules().items()}
    assert [name for name, text in sources.items() if len(text.splitlines()) > MAX_LINES] == []
    silent = [name for name, text in sources.items() if not ast.get_docstring(ast.parse(text))]
    assert silent == [], "the contract in a few lines is missing"
