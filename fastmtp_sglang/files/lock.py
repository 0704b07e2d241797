"""A folder that one process at a time fills."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from fastmtp_sglang.errors import FastMTPError


@contextlib.contextmanager
def sole_writer(folder: Path, command: str) -> Iterator[None]:
    """Make `folder` if it is missing, and hold it as long as the body runs, kills included.

    A file system without locks (some of NFS) is taken as it is: nobody else is noticed there.

    Args:
        folder: what `--output` names.
        command: what another process would be, such as `fastmtp train`.

    Raises:
        FastMTPError: another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise FastMTPError(
            f"--output {folder}: cannot be written ({error.strerror}); give another directory"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FastMTPError(
                f"--output {folder}: another `{command}` writes there; wait for it, or give "
                "another directory"
            ) from None
        except OSError:
            pass
        yield
