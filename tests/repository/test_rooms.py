"""The tests have the rooms of what they test: the path of a function tells where its test is.

    package/a/b.py           tests/a/test_b.py
    package/a/__init__.py    tests/a/test_a.py
    one aspect of b          tests/a/test_b_aspect.py, where it needs a file or a process of its own

Two rooms are of no module: `served/`, whose tests start SGLang, and `repository/`. The rooms of the
package are those that are shipped.
Alone: pytest tests/repository/test_rooms.py
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
OF_NO_MODULE = {"served", "repository"}
# Where the modules of a room lie; other rooms are those of the package.
SOURCES = {"benchmarks": ROOT / "benchmarks", "kernels": ROOT / "kernels"}
FILES = [
    path.relative_to(TESTS)
    for path in sorted(TESTS.rglob("test_*.py"))
    if path.relative_to(TESTS).parts[0] not in OF_NO_MODULE
]


def sources(test: Path) -> Iterator[Path]:
    """The files whose test this may be, by its path under tests/."""
    room, *below = test.parent.parts
    folder = SOURCES.get(room, ROOT / "fastmtp_sglang" / room).joinpath(*below)
    words = test.stem.removeprefix("test_").split("_")
    for count in range(len(words), 0, -1):
        name = "_".join(words[:count])
        yield folder / ("__init__.py" if name == folder.name else f"{name}.py")


def test_a_test_lies_where_its_module_does():
    assert len(FILES) > 60
    homeless = [test for test in FILES if not any(source.is_file() for source in sources(test))]
    assert homeless == []


def test_the_rooms_are_found():
    assert all((TESTS / room).is_dir() for room in OF_NO_MODULE | SOURCES.keys())


def test_every_room_of_the_package_is_shipped():
    """pyproject.toml lists packages one by one, since two folders are imported by other names."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {**setuptools["package-dir"], "fastmtp_sglang": "fastmtp_sglang"}
    rooms = {
        ".".join((name, *file.parent.relative_to(ROOT / folder).parts))
        for name, folder in folders.items()
        for file in (ROOT / folder).rglob("*.py")
    }
    assert {"fastmtp_sglang.serving.cpu.native", "fastmtp_kernels"} <= rooms
    assert set(setuptools["packages"]) - {"fastmtp_sglang.assets"} == rooms
