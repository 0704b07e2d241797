"""The build-once cache: whole or absent, one builder at a time, damage found and mended.

Alone: pytest tests/files/test_cache.py
"""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files import cache


@pytest.fixture(autouse=True)
def cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTMTP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(out: Path) -> None:
    (out / "weights").write_bytes(b"w" * 1000)
    (out / "sub").mkdir()
    (out / "sub" / "config").write_text("{}")


def never(out: Path) -> None:
    raise AssertionError("built again")


def test_directory_follows_the_environment(monkeypatch):
    monkeypatch.setenv("FASTMTP_CACHE", "/a")
    assert cache.directory() == Path("/a")
    monkeypatch.delenv("FASTMTP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.directory() == Path("/b/fastmtp")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache.directory() == Path("/c/.cache/fastmtp")


def test_a_user_without_a_home_is_told_which_variable_to_set(monkeypatch):
    monkeypatch.delenv("FASTMTP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 54321)  # in no /etc/passwd
    with pytest.raises(FastMTPError, match=r"no home for the cache .*set FASTMTP_CACHE to"):
        cache.directory()
    monkeypatch.setenv("FASTMTP_CACHE", "~nobody-of-that-name/cache")
    with pytest.raises(FastMTPError, match="set FASTMTP_CACHE to"):
        cache.directory()


def test_a_file_system_without_locks_is_told(cache_directory, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(FastMTPError, match=r"thing\.lock: its file system has no .*FASTMTP_CACHE"):
        cache.built("thing", fill, version="1")
    assert not (cache_directory / "thing").exists()


def test_builds_once(cache_directory):
    path = cache.built("thing", fill, version="1")
    assert path == cache_directory / "thing"
    assert (path / "sub" / "config").read_text() == "{}"
    assert cache.built("thing", never, version="1") == path
    assert sorted(p.name for p in cache_directory.iterdir()) == ["thing", "thing.lock"]


def test_another_version_is_rebuilt():
    cache.built("thing", fill, version="1")
    said = []
    path = cache.built(
        "thing", lambda out: (out / "new").write_text("n"), version="2", progress=said.append
    )
    assert [p.name for p in path.iterdir() if p.name != cache.MANIFEST] == ["new"]
    assert "it is version '1', and '2' is needed" in said[0]


def truncate(path):
    (path / "weights").write_bytes(b"w")


def same_size_other_bytes(path):
    (path / "sub" / "config").write_text("[]")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "weights has 1 bytes instead of 1000"),
        (same_size_other_bytes, "sub/config has another SHA-256 sum than when it was written"),
        (lambda path: (path / "weights").unlink(), "weights is missing"),
        (lambda path: (path / cache.MANIFEST).unlink(), "manifest.json is missing"),
        (lambda path: (path / cache.MANIFEST).write_text("{"), "manifest.json is unreadable"),
        (lambda path: (path / cache.MANIFEST).write_text("[1]"), "manifest.json is unreadable"),
    ],
)
def test_damage_is_named_and_mended(harm, reason):
    path = cache.built("thing", fill, version="1")
    harm(path)
    assert cache.damage(path, "1") == reason
    said = []
    cache.built("thing", fill, version="1", progress=said.append)
    assert said == [f"rebuilding {path}: {reason}"]
    assert cache.damage(path, "1") is None


def test_large_files_are_hashed_only_on_request(monkeypatch):
    monkeypatch.setattr(cache, "_HASHED_ON_EVERY_USE", 10)
    path = cache.built("thing", fill, version="1")
    (path / "weights").write_bytes(b"x" * 1000)
    assert cache.damage(path, "1") is None
    assert "weights has another SHA-256" in str(cache.damage(path, "1", every_sum=True))


def test_manifest_holds_the_sums():
    path = cache.built("thing", fill, version="1")
    manifest = json.loads((path / cache.MANIFEST).read_text())
    # printf {} | sha256sum
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert manifest["files"]["sub/config"] == {"bytes": 2, "sha256": digest}
    assert set(manifest["files"]) == {"weights", "sub/config"}


def test_a_failing_build_leaves_nothing_and_keeps_what_was_there(cache_directory):
    def fail(out: Path) -> None:
        fill(out)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.built("thing", fail, version="1")
    assert [p.name for p in cache_directory.iterdir()] == ["thing.lock"]

    path = cache.built("thing", fill, version="1")
    with pytest.raises(RuntimeError):
        cache.built("thing", fail, version="2")
    assert cache.damage(path, "1") is None


BUILD_FOR_EVER = """
import sys, time
from fastmtp_sglang.files import cache

def build(out):
    (out / "weights").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)

cache.built("thing", build, version="1")
"""


def test_killed_in_the_middle(cache_directory):
    with subprocess.Popen(
        [sys.executable, "-c", BUILD_FOR_EVER], stdout=subprocess.PIPE, text=True
    ) as builder:
        assert builder.stdout.readline() == "writing\n"
        builder.send_signal(signal.SIGKILL)
    assert not (cache_directory / "thing").exists()
    assert len(list(cache_directory.glob(".thing.*"))) == 1

    path = cache.built("thing", fill, version="1")
    assert cache.damage(path, "1") is None
    assert list(cache_directory.glob(".thing.*")) == []


def _build_slowly(log: str) -> None:
    def build(out: Path) -> None:
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.3)
        fill(out)

    path = cache.built("thing", build, version="1")
    assert (path / "weights").stat().st_size == 1000


def test_two_builders_at_once_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    builders = [context.Process(target=_build_slowly, args=(str(log),)) for _ in range(4)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(30)
    assert [builder.exitcode for builder in builders] == [0, 0, 0, 0]
    assert len(log.read_text().splitlines()) == 1


def test_waiting_is_announced(tmp_path):
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    other = context.Process(target=_build_slowly, args=(str(log),))
    other.start()
    while not log.exists():
        time.sleep(0.01)
    said = []
    cache.built("thing", never, version="1", progress=said.append)
    other.join()
    assert said[0].startswith("waiting for another process that holds ")


def test_no_room():
    with pytest.raises(FastMTPError, match=r"MiB free and thing needs .* set FASTMTP_CACHE"):
        cache.built("thing", never, version="1", needs_bytes=1 << 60)


def test_a_file_in_the_way(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTMTP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(FastMTPError, match=r"cannot write to the cache .* set FASTMTP_CACHE"):
        cache.built("thing", never, version="1")


def test_a_write_error_of_the_build_itself_is_no_cache_error():
    def build(out: Path) -> None:
        raise ValueError("not about the disk")

    with pytest.raises(ValueError, match="not about the disk"):
        cache.built("thing", build, version="1")
