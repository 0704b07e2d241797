"""Files that are written whole or not at all, and JSON among them.

Alone: pytest tests/files/test_atomic.py
"""

import json
import os
import stat

import pytest

from fastmtp_sglang.files.atomic import write_atomically, write_json


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


def test_json_is_for_people_and_holds_any_text(tmp_path):
    content = {"word": "Straße", "half": "\ud83d", "path": os.fsdecode(b"caf\xe9")}
    write_json(tmp_path / "f.json", content)
    text = (tmp_path / "f.json").read_bytes().decode()
    assert text.startswith('{\n  "word": "Straße",\n')
    assert text.endswith("}\n")
    assert json.loads(text) == content
