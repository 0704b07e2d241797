"""Whether files still hold what they held: by content, since a size or a date may stay."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def digest(files: Iterable[Path]) -> str:
    """Return 32 hexadecimal digits of the contents of files, in their order (about 1 GB/s)."""
    total = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "blake2b").digest())
    return total.hexdigest()
