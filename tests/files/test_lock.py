"""One process at a time fills a folder.

Alone: pytest tests/files/test_lock.py
"""

import fcntl

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.lock import sole_writer


def test_a_second_writer_is_refused_until_the_first_is_gone(tmp_path):
    folder = tmp_path / "deep" / "out"
    with (
        sole_writer(folder, "fastmtp x"),
        pytest.raises(FastMTPError, match=r"out: another `fastmtp x` writes there; wait"),
    ):
        sole_writer(folder, "fastmtp x").__enter__()
    with sole_writer(folder, "fastmtp x"):
        pass


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FastMTPError, match="file/out: cannot be written"):
        sole_writer(tmp_path / "file" / "out", "fastmtp x").__enter__()


def test_a_file_system_without_locks_is_taken(tmp_path, monkeypatch):
    def unsupported(file, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with sole_writer(tmp_path, "fastmtp x"):
        pass
