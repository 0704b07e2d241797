"""The table of SGLang hooks: complete, true for the installed SGLang, clear when it is not.

Alone: pytest tests/contract/test_compat.py
"""

import ast
import importlib
import importlib.metadata
import inspect
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import fastmtp_sglang
from fastmtp_sglang.contract import compat
from fastmtp_sglang.contract.hooks import Hook

PACKAGE = Path(fastmtp_sglang.__file__).parent


def test_the_installed_sglang_matches():
    assert [str(mismatch) for mismatch in compat.check()] == []


def test_the_tested_version_is_within_the_bounds():
    required = map(Requirement, importlib.metadata.requires("fastmtp-sglang") or ())
    (bounds,) = (one.specifier for one in required if one.name == "sglang")
    assert bounds == SpecifierSet(compat.SUPPORTED)
    assert f">={compat.TESTED}" in compat.SUPPORTED


def test_no_hook_is_listed_twice():
    paths = [hook.path for hook in compat.HOOKS]
    assert len(set(paths)) == len(paths)
    assert {hook.kind for hook in compat.HOOKS} == {"override", "call", "read"}


# --- the table says all that we override ---

# What Python itself puts into a class.
_NOT_OVERRIDES = {"__module__", "__doc__", "__abstractmethods__", "_abc_impl"}
# And what a dataclass is made of.
_NOT_OVERRIDES |= {"__annotations__", "__dataclass_fields__", "__dataclass_params__"}
_NOT_OVERRIDES |= {"__match_args__", "__eq__", "__hash__", "__repr__"}


def modules_with_subclasses() -> list[str]:
    """Our modules in which a class has a class of SGLang as its base."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sglang")
            for alias in node.names
        }
        bases = {
            base.id
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for base in node.bases
            if isinstance(base, ast.Name)
        }
        if imported & bases:
            found.append(".".join(path.relative_to(PACKAGE).with_suffix("").parts))
    return found


def overridden(module_name: str) -> Iterator[str]:
    """The names of SGLang's classes that the classes of one of our modules replace."""
    module = importlib.import_module(f"fastmtp_sglang.{module_name}")
    for cls in vars(module).values():
        if not inspect.isclass(cls) or cls.__module__ != module.__name__:
            continue
        for name in vars(cls).keys() - _NOT_OVERRIDES:
            for base in cls.__mro__[1:]:
                if base.__module__.startswith("sglang.") and name in vars(base):
                    yield f"{base.__module__}:{base.__name__}.{name}"
                    break


@pytest.mark.parametrize("module", modules_with_subclasses())
def test_every_override_is_listed(module):
    listed = {hook.path for hook in compat.HOOKS}
    # A method that SGLang's module may call with other arguments, except constructors that pass on
    # whatever they are given.
    missing = {path for path in overridden(module) if not path.endswith(".__init__")} - listed
    assert not missing


def test_every_replaced_operator_is_listed():
    """By the name of its definition; those that are None on a CPU have none to check."""
    from fastmtp_sglang.serving.cpu import ops

    listed = {hook.path.split(":")[1] for hook in compat.HOOKS}
    defined_for_gpus = {
        "top_k_renorm_prob",
        "top_p_renorm_prob",
    }
    assert {name for _, name, _ in ops._REPLACEMENTS} - listed == defined_for_gpus


# --- other versions of SGLang ---

OTHER_SGLANG = """
    from sglang.elsewhere import moved

    def kept(first, second, /, third, *, fourth=None): ...

    async def awaited(first): ...

    LIMIT = 3
    annotated: int = 4
    made = make(LIMIT)

    class Worker:
        size = 1

        def __init__(self, server_args, gpu_id): ...

        @classmethod
        def make(cls, name): ...

        class Inner:
            def deep(self, x): ...

    if LIMIT:
        def conditional(a): ...
    else:
        def otherwise(b): ...

    try:
        def tried(c): ...
    finally:
        pass
"""


@pytest.fixture
def other_sglang(tmp_path, monkeypatch) -> Callable[..., list[str]]:
    """Checks hooks against a tree with the module `sglang.srt.thing`; returns what was found."""
    directory = tmp_path / "sglang" / "srt"
    directory.mkdir(parents=True)
    (tmp_path / "sglang" / "__init__.py").touch()
    (directory / "thing.py").write_text(textwrap.dedent(OTHER_SGLANG))
    (directory / "package").mkdir()
    (directory / "package" / "__init__.py").write_text("def inside(x): ...")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "sglang", raising=False)
    compat._definitions.cache_clear()

    def check(*hooks: Hook) -> list[str]:
        monkeypatch.setattr(compat, "HOOKS", hooks)
        return [str(mismatch) for mismatch in compat.check()]

    yield check
    compat._definitions.cache_clear()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("thing:kept", "first second third fourth"),
        ("thing:kept", "first second"),
        ("thing:kept", ""),
        ("thing:kept", None),
        ("thing:awaited", "first"),
        ("thing:LIMIT", None),
        ("thing:annotated", None),
        ("thing:made", None),
        ("thing:Worker", None),
        ("thing:Worker.size", None),
        ("thing:Worker.__init__", "server_args gpu_id"),
        ("thing:Worker.make", "name"),
        ("thing:Worker.Inner.deep", "x"),
        ("thing:conditional", "a"),
        ("thing:otherwise", "b"),
        ("thing:tried", "c"),
        ("package:inside", "x"),
    ],
)
def test_what_matches(other_sglang, path, parameters):
    assert other_sglang(Hook("call", f"sglang.srt.{path}", parameters)) == []


@pytest.mark.heavy
def test_one_definition_reads_as_in_the_whole_file():
    """The check parses only what it looks for, wherever a file of SGLang holds it."""
    for hook in compat.HOOKS:
        module, name = hook.path.split(":")
        whole, part = compat._definitions(module), compat._definitions(module, name.split(".")[0])
        assert part[name] == whole[name], hook.path
    memory_pool = "sglang.srt.mem_cache.memory_pool"
    part = compat._definitions(memory_pool, "MHATokenToKVPool")
    assert len(part) < len(compat._definitions(memory_pool)) / 4


def test_a_text_in_the_first_column_does_not_end_a_definition():
    source = (
        'class A:\n    text = """\nlow\n"""\n    def f(self, x): ...\n\ndef g(\n    y\n): ...\n'
    )
    for name in ("A", "g"):
        found = {}
        for node in compat._parse(source, name):
            compat._collect(node, "", found)
        expected = {"A.f": ("x",), "g": ("y",)}
        assert expected.items() & found.items()
        assert all(found.get(key, value) == value for key, value in expected.items())


@pytest.mark.parametrize(
    ("kind", "path", "parameters", "message"),
    [
        ("call", "gone:f", "x", "sglang.srt.gone:f(x) [call]: the module is missing"),
        ("read", "thing:gone", None, "sglang.srt.thing:gone [read]: missing"),
        ("call", "thing:moved", "x", "sglang.srt.thing:moved(x) [call]: missing"),
        (
            "override",
            "thing:Worker.gone",
            "",
            "sglang.srt.thing:Worker.gone() [override]: missing",
        ),
        (
            "call",
            "thing:kept",
            "first other",
            "sglang.srt.thing:kept(first, other) [call]: now takes (first, second, third, fourth)",
        ),
        (
            "override",
            "thing:Worker.__init__",
            "server_args gpu_id nccl_port",
            "sglang.srt.thing:Worker.__init__(server_args, gpu_id, nccl_port) [override]: "
            "now takes (server_args, gpu_id)",
        ),
        ("call", "thing:made", "x", "sglang.srt.thing:made(x) [call]: no longer a function"),
        ("call", "thing:Worker", "x", "sglang.srt.thing:Worker(x) [call]: no longer a function"),
    ],
)
def test_what_does_not_match(other_sglang, kind, path, parameters, message):
    assert other_sglang(Hook(kind, f"sglang.srt.{path}", parameters)) == [message]


def test_every_mismatch_is_reported(other_sglang):
    hooks = [Hook("call", f"sglang.srt.thing:{name}", "x") for name in ("a", "kept", "b")]
    assert len(other_sglang(*hooks)) == 3


def test_without_sglang_every_hook_is_missing(monkeypatch):
    monkeypatch.setattr(compat.importlib.util, "find_spec", lambda name: None)
    compat._definitions.cache_clear()
    try:
        mismatches = compat.check()
    finally:
        compat._definitions.cache_clear()
    assert len(mismatches) == len(compat.HOOKS)
    assert {mismatch.found for mismatch in mismatches} == {"the module is missing"}


def test_the_report(other_sglang):
    other_sglang(Hook("call", "sglang.srt.gone:f", "x"), Hook("read", "sglang.srt.thing:lost"))
    report = compat.report(compat.check())
    assert f"does not know SGLang {importlib.metadata.version('sglang')}" in report
    assert "SGLang runs without it" in report
    assert "\n  sglang.srt.gone:f(x) [call]: the module is missing\n" in report
    assert "\n  sglang.srt.thing:lost [read]: missing\n" in report
    assert "pip install 'sglang==0.5.23'" in report
    assert "pip install -U fastmtp-sglang" in report


def test_the_check_is_cheap_and_imports_nothing_of_sglang():
    """Every process that SGLang starts runs it."""
    script = """
        import json, sys, time
        from fastmtp_sglang.contract import compat
        start = time.process_time()
        mismatches = compat.check()
        print(json.dumps({
            "seconds": time.process_time() - start,
            "mismatches": len(mismatches),
            "imported": [m for m in sys.modules if m.split(".")[0] in ("sglang", "torch")],
        }))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    run = json.loads(result.stdout)
    assert run["seconds"] < 2
    assert run["mismatches"] == 0
    assert run["imported"] == []
