"""Which file of a checkpoint directory holds a tensor, and what the file says of it.

Where there is an index (`model.safetensors.index.json`), its `weight_map` decides, as for SGLang
and transformers: a file beside the shards that it does not name is no part of the checkpoint.
"""

import json
from pathlib import Path
from typing import Any

from fastmtp_sglang.errors import FastMTPError

_INDEX = "model.safetensors.index.json"
# No header of a real file comes near; a larger number means that these are not its first bytes.
_LARGEST_HEADER = 100 * 1024**2


def tensor_files(directory: Path) -> dict[str, Path]:
    """Return name of every tensor -> the safetensors file that holds it; {} without any file.

    Raises:
        FastMTPError: the index is damaged or names a file that is not there, or a file is damaged.
    """
    index = directory / _INDEX
    if not index.is_file():
        paths = sorted(directory.glob("*.safetensors"))
        return {name: path for path in paths for name in read_header(path)[0]}
    try:
        files = {name: directory / file for name, file in _weight_map(index).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FastMTPError(f"{index} is damaged ({error}): download it again.") from error
    held = {path: read_header(path)[0] for path in sorted(set(files.values()))}
    # A checkpoint from which a layer was removed may still be indexed with it.
    return {name: path for name, path in files.items() if name in held[path]}


def read_header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return tensor -> dtype, shape and data_offsets; and the byte at which offset 0 lies.

    Raises:
        FastMTPError: the file is missing or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _LARGEST_HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
    except FileNotFoundError as error:
        raise FastMTPError(f"{path} is missing: download the checkpoint again.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FastMTPError(f"{path} is no safetensors file ({error}).") from error
    return header, 8 + size


def _weight_map(index: Path) -> dict[str, str]:
    return json.loads(index.read_text(encoding="utf-8"))["weight_map"]
