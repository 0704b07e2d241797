"""What a command will write, checked before it reads anything: no work is lost, no input either."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastmtp_sglang.errors import FastMTPError


def check_outputs(outputs: Mapping[str, Path], inputs: Iterable[Path] = ()) -> None:
    """Refuse files that cannot be written, or that would overwrite one another or an input.

    `outputs` are named as the command line names them, such as "--output".

    Raises:
        FastMTPError: A folder is missing or cannot be written to, the output is a folder, the same
            file as another output, or (by another path or a link) one of `inputs`.
    """
    taken = {_identity(path): f"the input {path}" for path in inputs}
    for name, path in outputs.items():
        if path.is_dir():
            raise FastMTPError(f"{name} {path}: is a folder; give the file to write.")
        if not path.parent.is_dir():
            raise FastMTPError(
                f"{name} {path}: the folder {path.parent} does not exist; create it first."
            )
        _check_writable(name, path, path.parent)
        other = taken.setdefault(_identity(path), f"{name} {path}")
        if other != f"{name} {path}":
            raise FastMTPError(f"{name} {path}: is also {other}; give another file.")


def check_output_folder(name: str, path: Path) -> None:
    """Refuse a folder that cannot be made or written to; it need not exist.

    Raises FastMTPError naming `name`, such as "--output".
    """
    existing = next(
        folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder)
    )
    if not existing.is_dir():
        raise FastMTPError(f"{name} {path}: {existing} is not a folder; give another one.")
    _check_writable(name, path, existing)


def _check_writable(name: str, path: Path, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FastMTPError(f"{name} {path}: no permission to write in {folder}; give another one.")


def _identity(path: Path) -> object:
    """Equal for two paths of one file, hard links among them."""
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino
