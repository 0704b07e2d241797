"""Files and folders that appear whole or not at all, also after kill -9 or a power cut."""

import fcntl
import glob
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from fastmtp_sglang.errors import FastMTPError

# No user's file is called so: what bears it may be removed.
_UNFINISHED = ".unfinished"
_YOUNG_SECONDS = 60.0


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that is renamed over it after the block, or removed on an error.

    What a killed process left of such a file is removed by the next one that writes `path`.

    Raises:
        OSError: The folder does not exist or is not writable.
    """
    descriptor, temporary = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix=_UNFINISHED
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            _lock(descriptor)
            _remove_leftovers(path)
            # mkstemp gives 0600; a server may run as another user than the builder.
            os.fchmod(file.fileno(), 0o644)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _lock(descriptor: int) -> bool:
    """Hold a file as long as this process lives; False if another does, or nobody can (NFS)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_leftovers(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{8 * '?'}{_UNFINISHED}"):
        with suppress(OSError), leftover.open("rb") as file:
            # A young one may be of a process that has not locked it yet.
            age = time.time() - os.fstat(file.fileno()).st_mtime
            if age > _YOUNG_SECONDS and _lock(file.fileno()):
                leftover.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` as the content of `path`; raises OSError as `replacing` does."""
    with replacing(path) as file:
        file.write(data)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON that people can read; raises OSError as `replacing` does."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    # What UTF-8 cannot hold (half of a surrogate pair, in texts and paths) becomes \udXXX, which
    # JSON reads back as it was.
    write_atomically(path, f"{text}\n".encode(errors="backslashreplace"))


@contextmanager
def folder_at_once(out: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `out`, which becomes `out` when the body has ended.

    If the body raises, the folder is removed; what a killed process left is removed by the next.

    Raises:
        FastMTPError: `out` exists, another process makes it now, or it cannot be written.
    """
    if out.exists():
        raise FastMTPError(f"--out {out} exists already. Choose another directory or remove it.")
    scratch = out.with_name(f".{out.name}{_UNFINISHED}")
    with ExitStack() as stack:
        try:
            scratch.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(scratch, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            # The kernel drops it with its owner, however that ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FastMTPError(
                f"--out {out}: another process is making it. Wait for it, or choose another "
                "directory."
            ) from None
        except OSError as error:
            raise FastMTPError(f"--out {out} cannot be written ({error.strerror}).") from error
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        for leftover in scratch.iterdir():
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        yield scratch
        scratch.chmod(0o755)
        os.replace(scratch, out)
