"""Files that are either the old content or the whole new one, also after kill -9 or a power cut."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that is renamed over it after the block, or removed on an error.

    Raises:
        OSError: The folder does not exist or is not writable.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            # mkstemp gives 0600; a server may run as another user than the builder.
            os.fchmod(file.fileno(), 0o644)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


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
