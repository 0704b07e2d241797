"""Per-slot tables: which head rows the draft scores, and for which languages.

A *slot* is one token that at least one language list holds. Slots are ordered by membership
pattern (the set of lists a token is in), so that every language is a few contiguous ranges and a
tile of neighbouring slots is read once for all rows of a mixed batch, or skipped when no row needs
it. 12 bytes a slot: head row, token id, language bits. The tables are built once, when the model
is loaded; the kernels read them, and nothing here runs while drafting.

The idea of drafting over a frequent subset of the vocabulary is FR-Spec's (arXiv 2502.14856), one
list a language FastMTP's (arXiv 2509.18362); one table for all languages of a mixed batch is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LANGUAGES = 31
"""Languages are bits of a non-negative int32; the "full vocabulary" language takes one of them."""

NO_LANGUAGE = -1
"""A row with this language has no list: it gets the fallback id, and costs no head rows."""


@dataclass(frozen=True)
class DraftSlots:
    """The slots of a set of language lists, on one tensor-parallel rank.

    Attributes:
        languages: names; a row's language id is an index into this tuple.
        head_rows: int32 [S], row of this rank's head matrix, ``token id - first id of the shard``.
        token_ids: int32 [S], global token ids; unique, ascending within one membership pattern.
        language_bits: int32 [S], bit ``l`` is set where the list of language ``l`` holds the token.
        shard: first token id of this rank's head rows, and the one behind the last.
    """

    languages: tuple[str, ...]
    head_rows: Tensor
    token_ids: Tensor
    language_bits: Tensor
    shard: tuple[int, int]

    @classmethod
    def build(
        cls,
        lists: Mapping[str, Sequence[int] | Tensor],
        vocab_size: int,
        shard: tuple[int, int] | None = None,
    ) -> DraftSlots:
        """Build the tables of ``lists`` on the CPU.

        Args:
            lists: language -> strictly ascending token ids (may be empty). A language whose list
                is ``range(vocab_size)`` is the full vocabulary; it is not special otherwise.
            vocab_size: token ids are below it.
            shard: ``(org_vocab_start_index, org_vocab_end_index)`` of this rank of a
                vocabulary-parallel head; ids outside are left out. ``None``: it holds every id.

        Raises:
            ValueError: no list, more than 31 of them, an id out of range, or ids that are not
                strictly ascending integers.
        """
        if not 1 <= len(lists) <= MAX_LANGUAGES:
            raise ValueError(
                f"between 1 and {MAX_LANGUAGES} languages are possible, not {len(lists)}"
            )
        start, end = (0, vocab_size) if shard is None else shard
        if not 0 <= start <= end <= vocab_size:
            raise ValueError(f"shard {shard} does not lie in a vocabulary of {vocab_size}")
        bits_of_id = torch.zeros(vocab_size, dtype=torch.int32)
        for bit, (language, ids) in enumerate(lists.items()):
            ids = _checked_ids(language, ids, vocab_size)
            bits_of_id[ids] |= 1 << bit
        bits_of_id = bits_of_id[start:end]

        head_rows = bits_of_id.nonzero().flatten()
        head_rows = head_rows[_gray_rank(bits_of_id[head_rows]).argsort(stable=True)]
        return cls(
            languages=tuple(lists),
            head_rows=head_rows.int(),
            token_ids=(head_rows + start).int(),
            language_bits=bits_of_id[head_rows],
            shard=(start, end),
        )

    def __len__(self) -> int:
        return len(self.head_rows)

    def slots_of(self, language: int) -> Tensor:
        """Slots of one language, int64 [n] on the CPU, in ascending order of their token ids."""
        slots = ((self.language_bits.cpu() >> language) & 1).nonzero().flatten()
        return slots[self.token_ids.cpu()[slots].argsort()]

    def ranges(self, language: int) -> list[tuple[int, int]]:
        """Contiguous slot ranges ``[start, end)`` that together are the language's list."""
        member = torch.zeros(len(self) + 2, dtype=torch.int8)
        member[1:-1] = ((self.language_bits.cpu() >> language) & 1).to(torch.int8)
        edges = member.diff().nonzero().flatten().tolist()
        return list(zip(edges[0::2], edges[1::2], strict=True))

    def tile_bits(self, tile: int) -> Tensor:
        """Languages that a tile of ``tile`` neighbouring slots serves: int32 [ceil(S / tile)].

        At least one tile, so that a rank whose shard holds no listed id has something to launch.
        """
        tiles = max(1, -(-len(self) // tile))
        bits = torch.zeros(tiles * tile, dtype=torch.int32)
        bits[: len(self)] = self.language_bits.cpu()
        bits = bits.view(tiles, tile)
        while bits.shape[1] > 1:  # torch has no bitwise-or reduction; tiles are powers of two
            bits = bits[:, 0::2] | bits[:, 1::2]
        return bits.flatten()


def _checked_ids(language: str, ids: Sequence[int] | Tensor, vocab_size: int) -> Tensor:
    """Return the list as int64 [n], or say what is wrong with it."""
    ids = torch.as_tensor(ids)
    if ids.numel() == 0:
        return torch.empty(0, dtype=torch.int64)
    if ids.dim() != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(
            f"the list of {language!r} must be one-dimensional integers, "
            f"not {ids.dtype} of shape {list(ids.shape)}"
        )
    ids = ids.to("cpu", torch.int64)
    if ids[0] < 0 or ids[-1] >= vocab_size or bool((ids.diff() <= 0).any()):
        raise ValueError(
            f"the list of {language!r} must be strictly ascending ids in [0, {vocab_size}); "
            f"sort it and drop duplicates (it runs from {int(ids.min())} to {int(ids.max())})"
        )
    return ids


def _gray_rank(bits: Tensor) -> Tensor:
    """Rank of a bit pattern in the reflected Gray code.

    Neighbours in that order differ in one language, so that a language falls into half as many
    contiguous ranges as in numerical order.
    """
    rank = bits.clone()
    for shift in (1, 2, 4, 8, 16):
        rank ^= rank >> shift
    return rank
