"""Machine code is kept on disk where that is possible, under a name that says what it is of.

Alone: pytest tests/serving/cpu/native/test_compiled.py
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastmtp_sglang.serving.cpu.native import compiled


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Path:
    """A copy of this room's sources, and an empty cache."""
    folder = tmp_path / "native"
    shutil.copytree(Path(compiled.__file__).parent, folder, ignore=shutil.ignore_patterns("__*"))
    monkeypatch.setattr(compiled, "__file__", str(folder / "compiled.py"))
    monkeypatch.setenv("FASTMTP_CACHE", str(tmp_path / "cache"))
    return folder


def folder() -> str | None:
    return compiled.cache_folder.__wrapped__()


def test_the_cache_is_named_by_all_that_decides_the_code(sources, monkeypatch):
    first = folder()
    assert Path(first).is_dir()
    assert folder() == first
    with (sources / "rows.py").open("a") as file:
        file.write("# another line\n")
    second = folder()
    assert second != first
    monkeypatch.setattr(compiled.llvm, "get_host_cpu_name", lambda: "another")
    assert folder() not in (first, second)


@pytest.mark.parametrize("in_the_way", ["a file", "no home"])
def test_no_cache_where_none_can_be_written(sources, tmp_path, monkeypatch, in_the_way):
    if in_the_way == "a file":
        (tmp_path / "cache").write_text("")
    else:
        monkeypatch.delenv("FASTMTP_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def no_home():
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", no_home)
    assert folder() is None


@pytest.mark.heavy
def test_operators_work_without_a_cache(tmp_path):
    """Compiled in memory, then; numba's settings for other people's functions are as they were."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    script = (
        "import numba, torch\n"
        "numba.config.CACHE_DIR = 'theirs'\n"
        "from fastmtp_sglang.serving.cpu.native.compiled import cache_folder\n"
        "from fastmtp_sglang.serving.cpu.native.engine import Engine\n"
        "x = torch.tensor([[3.0, 4.0]])\n"
        "out = Engine(2).norm(x, torch.ones(2), 0.0).square().sum().item()\n"
        "print(cache_folder(), numba.config.CACHE_DIR, round(out, 5))\n"
    )
    environment = {**os.environ, "FASTMTP_CACHE": str(in_the_way / "cache")}
    environment.pop("HOME", None)
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    assert result.stdout.split() == ["None", "theirs", "2.0"], result.stderr
