"""Token counts per language of any number of sources, in constant memory, resumable.

Counts and the position up to which they count are one file that is replaced atomically, so a run
that was killed at any moment goes on where its last checkpoint was, without repeating or losing
a token. Whole documents are held out, by a hash of their tokens, to measure coverage on text that
the ranking has not seen: the same ones whatever the order of documents and files.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialize

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import write_atomically
from fastmtp_sglang.files.digest import digest
from fastmtp_sglang.vocabulary.languages import LANGUAGES, UNDECIDED, languages_of_text
from fastmtp_sglang.vocabulary.sources import Document, Source

# A checkpoint of a 150k vocabulary takes milliseconds; this bounds the work that a kill can lose.
CHECKPOINT_SECONDS = 10.0
# Raised when documents are counted in another way, so that an old checkpoint is not continued.
_COUNTING_VERSION = 3
_UNDECIDED_NAME = "undecided"


@dataclass
class TokenCounts:
    """What was counted so far.

    Attributes:
        vocab_size: Length of every count.
        counted: Language -> int64 [vocab_size], occurrences in documents that are not held out.
        heldout: Language -> int64 [vocab_size], occurrences in held-out documents.
        repeats: Language -> int64 [vocab_size], those of them that the same token came before, in
            the document or its prompt: what a request's own tokens would hold.
        documents: Language -> number of documents, held out or not, mainly in that language.
        undecided: Tokens of documents whose scripts name no language; in neither count.
        source: Index of the source that is being read.
        position: Position in that source.
    """

    vocab_size: int
    counted: dict[str, np.ndarray] = field(default_factory=dict)
    heldout: dict[str, np.ndarray] = field(default_factory=dict)
    repeats: dict[str, np.ndarray] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    undecided: int = 0
    source: int = 0
    position: int = 0

    @property
    def tokens(self) -> int:
        """Tokens seen, in any language and none."""
        counts = [*self.counted.values(), *self.heldout.values()]
        return sum(int(count.sum()) for count in counts) + self.undecided

    @property
    def together(self) -> dict[str, np.ndarray]:
        """Language -> int64 [vocab_size], occurrences in all documents, held out or not."""
        nothing = np.zeros(self.vocab_size, dtype=np.int64)
        return {
            name: self.counted.get(name, nothing) + self.heldout.get(name, nothing)
            for name in {**self.counted, **self.heldout}
        }

    def add(self, languages: np.ndarray | str, document: Document, heldout_share: float) -> None:
        """Count one document.

        Args:
            languages: The label of the whole document, or int64 [n] indices into LANGUAGES.
            document: Its n token ids and those of its prompt, in range.
            heldout_share: Share of the documents to hold out.
        """
        ids = document.ids
        if isinstance(languages, str):
            parts = {languages: np.ones(len(ids), dtype=bool)}
        else:
            parts = {LANGUAGES[k]: languages == k for k in np.unique(languages) if k >= 0}
            self.undecided += int((languages == UNDECIDED).sum())
        if not parts or not ids.size:
            return
        main = max(parts, key=lambda name: (int(parts[name].sum()), name))
        self.documents[main] = self.documents.get(main, 0) + 1
        if not is_held_out(ids, heldout_share):
            for name, part in parts.items():
                self._count(self.counted, name, ids[part])
            return
        repeated = _came_before(document)
        for name, part in parts.items():
            self._count(self.heldout, name, ids[part])
            self._count(self.repeats, name, ids[part & repeated])

    def _count(self, group: dict[str, np.ndarray], name: str, ids: np.ndarray) -> None:
        if name not in group:
            group[name] = np.zeros(self.vocab_size, dtype=np.int64)
        found, times = np.unique(ids, return_counts=True)
        group[name][found] += times


def _came_before(document: Document) -> np.ndarray:
    """Of each token, whether document or prompt had it before; bool [n]."""
    before = np.isin(document.ids, document.prompt_ids)
    first = np.unique(document.ids, return_index=True)[1]
    is_first = np.zeros(len(document.ids), dtype=bool)
    is_first[first] = True
    return before | ~is_first


def is_held_out(ids: np.ndarray, share: float) -> bool:
    """Tell whether a document, int64 [n], is of the held-out share: the same in every run."""
    number = hashlib.blake2b(ids.astype("<i8").tobytes(), digest_size=8).digest()
    return int.from_bytes(number, "big") < share * 2**64


def count_tokens(
    sources: Sequence[Source],
    token_scripts: torch.Tensor,
    *,
    tokenizer_fingerprint: str,
    heldout_share: float,
    checkpoint: Path,
    on_progress: Callable[[TokenCounts], None],
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> TokenCounts:
    """Count all sources, continuing from `checkpoint` if it exists.

    Args:
        sources: Read in this order.
        token_scripts: int8 [vocab_size], decides the language of unlabelled documents.
        tokenizer_fingerprint: A checkpoint of another tokenizer is refused.
        heldout_share: In [0, 1).
        checkpoint: Written while counting and at the end, so that a second run with the same
            sources reads the counts back. Where their files hold something else by now, they are
            counted again.
        on_progress: Called after every document and once before the first.
        checkpoint_seconds: Time between two checkpoints.

    Raises:
        FastMTPError: The checkpoint is of other inputs, or a document is unreadable or holds ids
            beyond the vocabulary.
    """
    vocab_size = token_scripts.shape[0]
    signature = _Signature(
        settings=_hash(
            _COUNTING_VERSION,
            vocab_size,
            tokenizer_fingerprint,
            heldout_share,
            *((source.label, source.identity) for source in sources),
        ),
        contents=_hash(*(digest(source.files) for source in sources)),
    )
    counts = load_checkpoint(checkpoint, signature) if checkpoint.exists() else None
    counts = counts or TokenCounts(vocab_size)
    on_progress(counts)
    saved_at = time.monotonic()
    for index in range(counts.source, len(sources)):
        source = sources[index]
        if index != counts.source:
            counts.source, counts.position = index, 0
        for document, position in source.documents(counts.position):
            _check_range(document, vocab_size, source, counts.position)
            counts.add(_languages(document, source, token_scripts), document, heldout_share)
            counts.position = position
            on_progress(counts)
            if time.monotonic() - saved_at >= checkpoint_seconds:
                save_checkpoint(checkpoint, counts, signature)
                saved_at = time.monotonic()
    counts.source, counts.position = len(sources), 0
    save_checkpoint(checkpoint, counts, signature)
    on_progress(counts)
    return counts


def _languages(document: Document, source: Source, token_scripts: torch.Tensor) -> np.ndarray | str:
    if source.label is not None:
        return source.label
    prompt = torch.from_numpy(document.prompt_ids) if document.prompt_ids.size else None
    return languages_of_text(token_scripts, torch.from_numpy(document.ids), prompt).numpy()


def _check_range(document: Document, vocab_size: int, source: Source, position: int) -> None:
    for ids in (document.ids, document.prompt_ids):
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
            raise FastMTPError(
                f"source {source.spec}: the document at {position} holds token ids from "
                f"{ids.min()} to {ids.max()}, but the target has {vocab_size} rows in its head. "
                "The ids are of another tokenizer; give the model that wrote them."
            )


class _Signature(NamedTuple):
    """What counts are of: what was asked for, and what the files held."""

    settings: str
    contents: str


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def save_checkpoint(path: Path, counts: TokenCounts, signature: _Signature) -> None:
    """Replace the checkpoint atomically; only ids that occurred are stored."""
    tensors: dict[str, np.ndarray] = {}
    for kind in ("counted", "heldout", "repeats"):
        group: dict[str, np.ndarray] = getattr(counts, kind)
        for language, values in group.items():
            found = np.flatnonzero(values)
            tensors[f"{kind}.{language}"] = np.stack([found, values[found]])
    state = {
        "vocab_size": counts.vocab_size,
        "documents": counts.documents,
        "undecided": counts.undecided,
        "source": counts.source,
        "position": counts.position,
    }
    metadata = {**signature._asdict(), "state": json.dumps(state)}
    write_atomically(path, serialize(tensors, metadata=metadata))


def load_checkpoint(path: Path, signature: _Signature) -> TokenCounts | None:
    """Read a checkpoint back; None where the files have changed since.

    Raises:
        FastMTPError: It is no checkpoint, or of other inputs or settings.
    """
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise FastMTPError(
            f"{path}: not a checkpoint of token counts ({error}). Delete it, or give --restart."
        ) from error
    if metadata.get("settings") != signature.settings:
        raise FastMTPError(
            f"{path}: holds counts of other sources, a tokenizer or a held-out share than these. "
            "Give --restart to count from the beginning, or another --output."
        )
    if metadata["contents"] != signature.contents:
        return None
    state = json.loads(metadata["state"])
    counts = TokenCounts(**state)
    for name, (found, values) in tensors.items():
        kind, _, language = name.partition(".")
        dense = np.zeros(counts.vocab_size, dtype=np.int64)
        dense[found] = values
        getattr(counts, kind)[language] = dense
    return counts
