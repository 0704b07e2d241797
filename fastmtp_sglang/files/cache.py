"""Directories that are built once and then reused: the cache behind `fastmtp demo`.

`built(name, build, ...)` returns a directory that `build` has filled. It appears complete or not at
all (built in a temporary sibling and renamed), is built by one process at a time (a file lock that
the kernel drops with its owner), and carries a manifest of sizes and SHA-256 sums. Every use checks
the sizes, and the sums of files up to 16 MiB; what fails is rebuilt. Standard library only.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from fastmtp_sglang.errors import FastMTPError

Progress = Callable[[str], None]

MANIFEST = "manifest.json"
# Hashing 500 MB of weights at every start would cost a second; the small files cost nothing.
_HASHED_ON_EVERY_USE = 16 * 1024**2
_ANOTHER = "set FASTMTP_CACHE to a directory that has room and can be written"


def silent(message: str) -> None:
    """Report no progress."""


def directory() -> Path:
    """Return the cache: $FASTMTP_CACHE, else $XDG_CACHE_HOME/fastmtp, else ~/.cache/fastmtp.

    Raises FastMTPError for a user without a home.
    """
    try:
        if own := os.environ.get("FASTMTP_CACHE"):
            return Path(own).expanduser().absolute()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "fastmtp"
    except RuntimeError as error:
        raise FastMTPError(f"there is no home for the cache ({error}): {_ANOTHER}") from error


def built(
    name: str,
    build: Callable[[Path], None],
    *,
    version: str,
    progress: Progress = silent,
    needs_bytes: int = 0,
) -> Path:
    """Return `directory() / name`, after `build(empty_directory)` if it is missing, old or damaged.

    `version` names what `build` makes; a directory of another version is rebuilt. `needs_bytes` is
    the free space that `build` needs. Raises FastMTPError when the cache cannot be written or has
    no room, and whatever `build` raises; nothing half-built is ever left under `name`.
    """
    target = directory() / name
    if damage(target, version) is None:
        return target
    with _writable(target.parent), _lock(target.with_name(f"{name}.lock"), progress):
        reason = damage(target, version)
        if reason is None:  # another process built it while this one waited
            return target
        if target.exists():
            progress(f"rebuilding {target}: {reason}")
        for leftover in target.parent.glob(
            f".{name}.*"
        ):  # of builders that were killed: we hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        free = shutil.disk_usage(target.parent).free
        if free < needs_bytes:
            raise FastMTPError(
                f"the cache {target.parent} has {free >> 20} MiB free and {name} needs "
                f"{needs_bytes >> 20} MiB: free some, or set FASTMTP_CACHE to another directory"
            )
        _build(target, build, version)
    return target


def damage(target: Path, version: str, *, every_sum: bool = False) -> str | None:
    """Return why `target` cannot be used, or None; `every_sum` hashes the large files too."""
    try:
        manifest = json.loads((target / MANIFEST).read_text())
        files = {
            name: (entry["bytes"], entry["sha256"]) for name, entry in manifest["files"].items()
        }
        found = manifest["version"]
    except FileNotFoundError:
        return "it does not exist" if not target.exists() else f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is unreadable"
    if found != version:
        return f"it is version {found!r}, and {version!r} is needed"
    for name, (size, digest) in files.items():
        path = target / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if (every_sum or size <= _HASHED_ON_EVERY_USE) and _sha256(path) != digest:
            return f"{name} has another SHA-256 sum than when it was written"
    return None


def write_manifest(folder: Path, version: str) -> None:
    """Write down what `damage` looks for, and make all files readable for others."""
    names = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    # mkdtemp and safetensors write for their owner alone; a cache may be shared.
    folder.chmod(0o755)
    for name in names:
        (folder / name).chmod(0o644)
    files = {
        str(name): {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in names
    }
    manifest = {"version": version, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _build(target: Path, build: Callable[[Path], None], version: str) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        build(temporary)
        write_manifest(temporary, version)
        if target.exists():
            # A server may still read the old files: moved and unlinked they stay readable to it.
            target.rename(temporary.with_name(f"{temporary.name}.old"))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(temporary.with_name(f"{temporary.name}.old"), ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _lock(path: Path, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that holds {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise FastMTPError(
                f"{path}: its file system has no locks ({error.strerror}); {_ANOTHER}"
            ) from error
        yield


@contextlib.contextmanager
def _writable(cache: Path) -> Iterator[None]:
    """Create `cache`; turn "no permission" and "no space" below it into errors with a way out."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno not in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOSPC,
            errno.ENOTDIR,
            errno.EEXIST,
        ):
            raise
        raise FastMTPError(
            f"cannot write to the cache {cache}: {error.strerror}; {_ANOTHER}"
        ) from error
