"""The target's hidden states of a set of documents, computed once and stored.

A folder of safetensors shards and `manifest.json` with their SHA-256 sums. A shard's name is a
digest of what it holds (the target, the dtype, the tokens), so a run that was killed goes on where
it stopped, and data that has grown computes only what is new. Shards are written atomically and
read through the page cache, never copied as a whole.

Tensors of a shard: `input_ids` int32 [S], `counted` bool [S], `lengths` int64 [n] and
`hidden_states` [S, D] in the target's dtype.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import write_atomically, write_json
from fastmtp_sglang.training.corpus import Changed
from fastmtp_sglang.training.packing import Document
from fastmtp_sglang.training.target import FrozenTarget

# 50 MB of SmolLM2's states, 260 MB of MiMo-7B's: what a killed run loses at most.
_TOKENS_PER_SHARD = 32768
_MANIFEST = "manifest.json"

Progress = Callable[[int, int], None]


def store_hidden_states(
    folder: Path,
    documents: Sequence[Document],
    target: FrozenTarget,
    progress: Progress = lambda done, total: None,
) -> Sequence[Document]:
    """Make the store complete for these documents, and read it.

    Args:
        folder: made if missing. Shards of other documents in it are removed at the end.
        documents: without hidden states.
        target: runs for the shards that are not there yet.
        progress: receives tokens stored and tokens in all, after each shard.

    Returns:
        The same documents with hidden states, which are mapped from the files when asked for.

    Raises:
        FastMTPError: a stored file is damaged, or the target's states are not finite or all zero.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sums = _read_manifest(folder)
    total = sum(len(document.input_ids) for document in documents)
    identity, done, names = f"{target.digest} {target.dtype}", 0, []
    places: list[_Place] = []
    for group in _groups(documents):
        name = f"{_digest(group, identity)}.safetensors"
        path = folder / name
        if name not in sums or not path.is_file():
            content = _compute(group, target)
            write_atomically(path, content)
            sums[name] = hashlib.sha256(content).hexdigest()
            _write_manifest(folder, sums)
        else:
            _check(path, sums[name])
        names.append(name)
        row = 0
        for document in group:
            places.append(_Place(path, row))
            row += len(document.input_ids)
        done += row
        progress(done, total)
    for stale in set(sums) - set(names):
        (folder / stale).unlink(missing_ok=True)
    _write_manifest(folder, {name: sums[name] for name in names})

    def with_states(index: int, document: Document) -> Document:
        return replace(document, hidden_states=places[index].read(len(document.input_ids)))

    return Changed(documents, with_states)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a document's hidden states are: a shard, and the first row there."""

    path: Path
    row: int

    def read(self, length: int) -> torch.Tensor:
        """[length, D], mapped: only the pages that are used are read."""
        with safe_open(self.path, "pt") as shard:
            return shard.get_slice("hidden_states")[self.row : self.row + length]


def _groups(documents: Sequence[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    tokens = 0
    for document in documents:
        group.append(document)
        tokens += len(document.input_ids)
        if tokens >= _TOKENS_PER_SHARD:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _digest(group: list[Document], identity: str) -> str:
    digest = hashlib.sha256(identity.encode())
    for document in group:
        digest.update(len(document.input_ids).to_bytes(8, "little"))
        digest.update(document.input_ids.to(torch.int32).numpy().tobytes())
        digest.update(document.counted.numpy().tobytes())
    return digest.hexdigest()[:32]


def _compute(group: list[Document], target: FrozenTarget) -> bytes:
    ids = torch.cat([document.input_ids for document in group])
    lengths = [len(document.input_ids) for document in group]
    states = target.packed_hidden_states(ids.to(target.device), lengths).cpu()
    if not states.isfinite().all() or not states.any(dim=-1).all():
        raise FastMTPError(
            f"target {target.directory} gave hidden states that are zero or not finite; a head "
            "trained on them would learn nothing. Check the checkpoint and its dtype."
        )
    return save(
        {
            "input_ids": ids.to(torch.int32),
            "counted": torch.cat([document.counted for document in group]),
            "lengths": torch.tensor(lengths),
            "hidden_states": states,
        }
    )


def _check(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise FastMTPError(
            f"stored hidden states {path} are damaged (another SHA-256 sum than when written). "
            "Remove the file; the next run computes it again."
        )


def _read_manifest(folder: Path) -> dict[str, str]:
    try:
        return json.loads((folder / _MANIFEST).read_text())["sha256"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise FastMTPError(f"{folder / _MANIFEST} is damaged: remove the folder.") from error


def _write_manifest(folder: Path, sums: dict[str, str]) -> None:
    write_json(folder / _MANIFEST, {"format": "fastmtp-hidden-states", "sha256": sums})
