"""Locks on files, which the kernel drops with their owner."""

import fcntl
from typing import IO, Any

from fastmtp_sglang.errors import FastMTPError


def take(file: IO[Any], way_out: str, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed; False where another process has it, without `wait`.

    Raises FastMTPError, which ends in `way_out`, on a file system that has no locks: two processes
    would write over each other there.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise FastMTPError(
            f"{file.name}: its file system has no locks ({error.strerror}): {way_out}"
        ) from error
    return True
