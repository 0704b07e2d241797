"""Lists of token ids: what makes one valid, and how published `.pt` lists are read.

SGLang's own loader accepts duplicates, negative ids (they pick rows from the end), truncated
floats, boolean masks, matrices and ids of any size; each of them silently drafts from the wrong
rows, so each of them is an error here.
"""

import pickle
from pathlib import Path
from typing import Any

import torch

from fastmtp_sglang.errors import FastMTPError


def check_ids(ids: torch.Tensor, *, name: str, vocab_size: int | None) -> torch.Tensor:
    """Return `ids` as a sorted int64 tensor, or say what is wrong with them.

    Args:
        ids: Any tensor.
        name: What the ids belong to, for messages: "language 'en' of FILE".
        vocab_size: The target's `config.vocab_size`; None where it is not known.

    Returns:
        int64 [n], sorted ascending, unique.

    Raises:
        FastMTPError: Not one-dimensional, not integer, empty, negative, out of range or duplicated.
    """
    if ids.dtype == torch.bool:
        raise FastMTPError(
            f"{name}: holds booleans, which look like a mask over the vocabulary; it must list "
            "token ids. Convert the mask with `mask.nonzero().flatten()`."
        )
    if ids.is_floating_point() or ids.is_complex():
        raise FastMTPError(
            f"{name}: holds {ids.dtype} values; token ids are integers. Save them as int64."
        )
    if ids.dim() != 1:
        raise FastMTPError(
            f"{name}: has shape {list(ids.shape)}; a list of token ids has one dimension."
        )
    if ids.numel() == 0:
        raise FastMTPError(
            f"{name}: holds no ids. Leave the language out, and its requests draft from the full "
            "vocabulary."
        )
    ordered = ids.to(torch.int64).sort().values
    if ordered[0] < 0:
        raise FastMTPError(
            f"{name}: holds the negative id {int(ordered[0])}; ids are rows of the target's head."
        )
    if vocab_size is not None and ordered[-1] >= vocab_size:
        raise FastMTPError(
            f"{name}: holds id {int(ordered[-1])}, but the target has {vocab_size} rows in its "
            f"head (config.vocab_size): ids go from 0 to {vocab_size - 1}. The list is for another "
            "model."
        )
    repeated = ordered[1:][ordered[1:] == ordered[:-1]].unique()
    if repeated.numel():
        raise FastMTPError(
            f"{name}: holds {repeated.numel()} ids more than once, the first of them "
            f"{int(repeated[0])}; each id is one row of the head and may occur once."
        )
    return ordered


def read_id_list(path: Path, *, vocab_size: int | None) -> torch.Tensor:
    """Read a published list of ids, as FR-Spec and `--speculative-token-map` use them.

    The file is unpickled with `weights_only=True`, so it cannot run code. A path that does not
    exist is an error and never the name of something to download.

    Args:
        path: A `.pt` file that holds a list of ints or a one-dimensional integer tensor.
        vocab_size: See `check_ids`.

    Returns:
        int64 [n], sorted ascending, unique.

    Raises:
        FastMTPError: No such file, not such a list, or ids that `check_ids` refuses.
    """
    if not path.is_file():
        raise FastMTPError(
            f"id list {path}: no such file. Nothing is downloaded: fetch the list first and give "
            "the path of the local file."
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise FastMTPError(
            f"id list {path}: not a plain id list saved by torch.save ({_first_line(error)}). "
            "Files that need code to load are refused; save the ids with `torch.save([id, ...], "
            "path)`."
        ) from error
    return check_ids(_as_tensor(content, path), name=f"id list {path}", vocab_size=vocab_size)


def _as_tensor(content: Any, path: Path) -> torch.Tensor:
    if isinstance(content, torch.Tensor):
        return content
    if not isinstance(content, (list, tuple)):
        raise FastMTPError(
            f"id list {path}: holds a {type(content).__name__}; a list of ints or a "
            "one-dimensional integer tensor is expected."
        )
    # bool is a subclass of int and torch.tensor would mix it in silently, hence the exact type.
    for index, item in enumerate(content):
        if type(item) is not int:
            raise FastMTPError(
                f"id list {path}: entry {index} is {item!r:.60}, a {type(item).__name__}; every "
                "entry must be an integer token id."
            )
    try:
        return torch.tensor(content, dtype=torch.int64)
    except (ValueError, RuntimeError, OverflowError) as error:
        raise FastMTPError(
            f"id list {path}: an id does not fit into 64 bits ({_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:160] or type(error).__name__
