"""What is shipped: a wheel that holds the packages, and a checkout that shadows nobody's.

Alone: pytest tests/repository/test_packaging.py
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
# Import name -> folder of the repository.
PACKAGES = {
    "fastmtp_sglang": "fastmtp_sglang",
    "fastmtp_kernels": "kernels",
    "fastmtp_benchmarks": "benchmarks",
}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """Folder with the sdist, and the wheel that was built from it."""
    root = tmp_path_factory.mktemp("packaging")
    # A copy: building writes into the tree, and leftovers of an earlier build end up in the wheel.
    leftovers = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "shared")
    shutil.copytree(ROOT, root / "tree", ignore=leftovers)
    result = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", root / "dist", root / "tree"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Warning" not in result.stderr, result.stderr
    return root / "dist"


@pytest.fixture(scope="module")
def wheel(distributions) -> zipfile.ZipFile:
    (path,) = distributions.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory) -> Path:
    """The wheel installed beside everything else, as `pip install --target` does it."""
    (path,) = distributions.glob("*.whl")
    target = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--disable-pip-version-check", "--target", target, path),
        ],
        check=True,
    )
    return target


def python(code: str, *, cwd: Path, path: Path | None = None):
    """Run `code` in a new process, with `path` before the environment's packages."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    expected = {
        f"{name}/{file.relative_to(ROOT / folder)}"
        for name, folder in PACKAGES.items()
        for file in (ROOT / folder).rglob("*.py")
    }
    assert {"fastmtp_sglang/serving/plugin.py", "fastmtp_kernels/slots.py"} <= expected
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name for name in shipped if name.endswith(".py")} == expected
    assert "fastmtp_sglang/py.typed" in shipped
    head = ROOT / "fastmtp_sglang" / "assets" / "smollm2-head"
    files = [file for file in head.rglob("*") if file.is_file()]
    assert head / "model.safetensors" in files
    assert {str(file.relative_to(ROOT)) for file in files} <= shipped
    assert {name.split("/")[0] for name in shipped} == set(PACKAGES)


def test_the_wheels_metadata(wheel):
    (folder,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    for name in ("LICENSE", "NOTICE"):
        assert wheel.read(f"{folder}/licenses/{name}") == (ROOT / name).read_bytes()


def test_the_sdist_is_enough_to_build_and_to_read(distributions):
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "README.md", "LICENSE", "kernels/slots.py"} <= names


def test_the_installed_wheel_has_its_entry_points(installed, tmp_path):
    found = python(
        f"""
        import json, sys
        from importlib.metadata import distributions

        (ours,) = distributions(name="fastmtp-sglang", path=[{str(installed)!r}])
        print(json.dumps({{
            point.group + ": " + point.name: sys.modules[point.load().__module__].__file__
            for point in ours.entry_points
        }}))
        """,
        cwd=tmp_path,
        path=installed,
    )
    assert found == {
        "sglang.srt.plugins: fastmtp": str(installed / "fastmtp_sglang/serving/plugin.py"),
        "sglang.srt.platforms: fastmtp_cpu": str(
            installed / "fastmtp_sglang/serving/cpu/__init__.py"
        ),
        "console_scripts: fastmtp": str(installed / "fastmtp_sglang/cli/__init__.py"),
    }


def origin(module: str) -> str:
    """Code that prints where a module would come from, without importing it."""
    return f"""
        import importlib.util, json
        spec = importlib.util.find_spec({module!r})
        print(json.dumps(spec and (spec.origin or list(spec.submodule_search_locations))))
    """


def test_the_wheel_is_found_from_anywhere(installed, tmp_path):
    """From a checkout too, where a folder bears the kernels' short name."""
    for cwd in (tmp_path, ROOT):
        for module in ("fastmtp_kernels.slots", "fastmtp_benchmarks.stages"):
            file = installed / (module.replace(".", "/") + ".py")
            assert python(origin(module), cwd=cwd, path=installed) == str(file)


@pytest.mark.parametrize("module", ["fastmtp_sglang.serving.plugin", "fastmtp_kernels.slots"])
def test_the_environments_own_install_is_found_from_anywhere(module, tmp_path):
    for cwd in (tmp_path, ROOT):
        assert Path(python(origin(module), cwd=cwd)).is_file()


def test_kernels_is_hugging_faces_package_in_a_checkout():
    """SGLang depends on it, and with -c or -m the working directory comes first."""
    code = "import json, kernels; print(json.dumps([kernels.__file__, dir(kernels)]))"
    file, names = python(code, cwd=ROOT)
    assert "get_kernel" in names
    assert ROOT / "kernels" not in Path(file).parents


@pytest.mark.parametrize("folder", ["benchmarks", "configs", "kernels", "tests"])
def test_a_folder_of_the_checkout_yields_to_a_package(folder, tmp_path):
    """Whoever has a package of that name gets it, although the checkout comes first."""
    package = tmp_path / folder
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert python(origin(folder), cwd=ROOT, path=tmp_path) == str(package / "__init__.py")


@pytest.mark.parametrize("folder", ["benchmarks", "configs", "tests"])
def test_a_folder_of_the_checkout_is_not_installed(folder, installed, tmp_path):
    for path in (None, installed):
        places = str(python(origin(folder), cwd=tmp_path, path=path))
        assert str(ROOT) not in places
        assert str(installed) not in places


def test_the_command_answers_within_a_second(installed, tmp_path):
    """In processor time, which a busy machine does not stretch as it does the clock's."""
    seconds = []
    for _ in range(3):
        before = os.times()
        result = subprocess.run(
            [sys.executable, installed / "bin" / "fastmtp", "--help"],
            env={**os.environ, "PYTHONPATH": str(installed)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        after = os.times()
        seconds.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
        assert result.returncode == 0, result.stderr
        for command in ("demo", "serve", "doctor", "head", "vocab"):
            assert command in result.stdout
    assert min(seconds) < 1, seconds
