"""Files and folders that are written whole or not at all, and JSON among them.

Alone: pytest tests/files/test_atomic.py
"""

import json
import os
import signal
import stat

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import folder_at_once, replacing, write_atomically, write_json


def test_the_new_content_is_there_and_readable_by_others(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_failure_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [(file, file.read_bytes()) for file in tmp_path.iterdir()] == [(path, b"old")]


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path):
    path = tmp_path / "f[1]"
    with replacing(path) as file:  # alive: not to be touched, however old
        file.write(b"mine")
        (mine,) = tmp_path.iterdir()
        dead, young, other = (
            tmp_path / f".{name}"
            for name in ("f[1].12345678.unfinished", "f[1].abcdefgh.unfinished", "f[1].of_the_user")
        )
        for leftover in (dead, other):
            leftover.write_bytes(b"half")
        for leftover in (mine, dead, other):
            os.utime(leftover, (1, 1))
        young.write_bytes(b"half")
        write_atomically(path, b"new")
        assert {mine, young, other, path} == set(tmp_path.iterdir())
    assert path.read_bytes() == b"mine"


def test_json_is_for_people_and_holds_any_text(tmp_path):
    content = {"word": "Straße", "half": "\ud83d", "path": os.fsdecode(b"caf\xe9")}
    write_json(tmp_path / "f.json", content)
    text = (tmp_path / "f.json").read_bytes().decode()
    assert text.startswith('{\n  "word": "Straße",\n')
    assert text.endswith("}\n")
    assert json.loads(text) == content


def write(out, content="new"):
    with folder_at_once(out) as scratch:
        (scratch / "inner").mkdir()
        (scratch / "inner" / "file").write_text(content)
        (scratch / "other").write_text(content)


def test_folder(tmp_path):
    write(tmp_path / "deep" / "out")
    assert (tmp_path / "deep" / "out" / "inner" / "file").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    with pytest.raises(FastMTPError, match="exists already"):
        write(tmp_path / "deep" / "out")


def test_nothing_is_left_of_a_folder_that_failed(tmp_path):
    def fail():
        with folder_at_once(tmp_path / "out") as scratch:
            (scratch / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path):
    out = tmp_path / "out"
    child = os.fork()
    if not child:
        try:
            with folder_at_once(out) as scratch:
                (scratch / "half").write_text("half")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert len(list(tmp_path.iterdir())) == 1
    write(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in out.iterdir()) == ["inner", "other"]


def test_two_at_once_are_refused(tmp_path):
    with folder_at_once(tmp_path / "out") as scratch:
        (scratch / "mine").write_text("x")
        with pytest.raises(FastMTPError, match="another process is making it"):
            write(tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "x"


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FastMTPError, match=r"--out .*file/out cannot be written"):
        write(tmp_path / "file" / "out")
