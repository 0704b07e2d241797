"""Documents by the million: tokens in flat arrays, a `Document` made when it is asked for.

4 bytes a token and some 30 a document, where lists of Python's integers take 36 bytes a token.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
import torch

from fastmtp_sglang.training.packing import Document

Spans = list[tuple[int, int]]


class Corpus(Sequence[Document]):
    """Documents without hidden states, appended one by one and read at any index."""

    def __init__(self) -> None:
        self._ids = array("i")
        self._starts = array("q", [0])
        # Begin and end of what counts, as positions in its document; and of a document its first.
        self._spans = array("i")
        self._first_spans = array("q", [0])

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return len(self._ids)

    def append(self, input_ids: np.ndarray, counted: Spans) -> None:
        """Add a document.

        Args:
            input_ids: int32 [T].
            counted: begin and end of each run of tokens that count.
        """
        self._ids.frombytes(input_ids.astype(np.int32, copy=False).tobytes())
        self._starts.append(len(self._ids))
        for span in counted:
            self._spans.extend(span)
        self._first_spans.append(len(self._spans))

    def counted_ids(self, vocab_size: int) -> torch.Tensor:
        """The distinct ids that count, int64, ascending."""
        seen = torch.zeros(vocab_size, dtype=torch.bool)
        for document in self:
            seen[document.input_ids[document.counted]] = True
        return seen.nonzero().squeeze(1)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        """The document, or the documents, of an index; in new tensors."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        ids = np.array(self._ids[self._starts[index] : self._starts[index + 1]], dtype=np.int64)
        counted = torch.zeros(len(ids), dtype=torch.bool)
        spans = self._spans[self._first_spans[index] : self._first_spans[index + 1]]
        for begin, end in zip(spans[::2], spans[1::2], strict=True):
            counted[begin:end] = True
        return Document(torch.from_numpy(ids), counted)


class Changed(Sequence[Document]):
    """Documents of another sequence, each changed by a function when it is asked for."""

    def __init__(
        self, documents: Sequence[Document], change: Callable[[int, Document], Document]
    ) -> None:
        self._documents = documents
        self._change = change

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> list[Document]: ...
    def __getitem__(self, index: int | slice) -> Document | list[Document]:
        """The changed document, or documents, of an index."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self._change(index, self._documents[index])
