"""Outputs that would overwrite something, or cannot be written.

Alone: pytest tests/files/test_outputs.py
"""

import os
from pathlib import Path

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.outputs import check_output_folder, check_outputs


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text("in")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.jsonl").symlink_to("in.jsonl")
    os.link(tmp_path / "in.jsonl", tmp_path / "hard.jsonl")
    return tmp_path


@pytest.mark.parametrize("path", ["in.jsonl", "./folder/../in.jsonl", "link.jsonl", "hard.jsonl"])
def test_an_input_is_no_output_under_any_name(path):
    with pytest.raises(FastMTPError, match=r"--output .*: is also the input in\.jsonl; give"):
        check_outputs({"--output": Path(path)}, [Path("in.jsonl")])


def test_outputs_may_not_be_one_file():
    new = {"--output": Path("a"), "--report": Path("folder/../a")}
    with pytest.raises(FastMTPError, match=r"--report folder/\.\./a: is also --output a"):
        check_outputs(new)
    check_outputs({"--output": Path("a"), "--report": Path("b")}, [Path("in.jsonl")])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("folder", "is a folder; give the file"),
        (".", "is a folder; give the file"),
        ("no/a", "the folder no does not exist"),
        ("in.jsonl/a", r"the folder in\.jsonl does not exist"),
    ],
)
def test_what_cannot_be_written(path, message):
    with pytest.raises(FastMTPError, match=f"--output .*: {message}"):
        check_outputs({"--output": Path(path)})


@pytest.mark.parametrize("path", ["in.jsonl", "in.jsonl/a/b", "folder/../in.jsonl"])
def test_a_file_where_a_folder_is_wanted(path):
    with pytest.raises(FastMTPError, match=r"--output .*in\.jsonl is not a folder"):
        check_output_folder("--output", Path(path))


def test_without_permission(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root has them all
    with pytest.raises(FastMTPError, match="--output a: no permission to write in"):
        check_outputs({"--output": Path("a")})
    with pytest.raises(FastMTPError, match="--output a/b: no permission to write in"):
        check_output_folder("--output", Path("a/b"))


def test_folders_that_can_be_made():
    for path in ("folder", "new", "new/and/deep"):
        check_output_folder("--output", Path(path))
