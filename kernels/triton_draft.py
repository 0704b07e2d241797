"""Draft logits on a GPU: scores fused with their reduction, every needed head row read once.

Two kernels. ``score_tiles``: a program takes a tile of slots, returns at once if no row of the
batch speaks a language of the tile, reads the head rows that some row needs, scores the whole batch
with ``tl.dot`` and keeps the best keys of each row. ``reduce_tiles``: a program a row takes the
maximum over the tiles that serve the row's language. It also merges tensor-parallel ranks, which
are to it nothing but a few more tiles.

Own tokens of requests are a few more tiles, each for one row of the batch: their rows are gathered
from the live head, and the second kernel finds their keys beside those of the lists.

Rows are gathered from the live head (no copy), or, packed, read from a copy in slot order. Nearest
to this is FlashSampling (arXiv 2603.15854), which fuses the head with sampling but has neither a
subset of rows nor a mask a row.

Called by the draft head inside CUDA graphs: static shapes, no host reads, a workspace allocated at
construction. Keys make ties, tile order and sharding irrelevant (``fastmtp_kernels.keys``).
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from fastmtp_kernels import draft_tiles
from fastmtp_kernels.draft_logits import DraftLogits, DraftOptions, DraftTokens
from fastmtp_kernels.slots import DraftSlots
from fastmtp_kernels.tile_configs import MAX_BLOCK_V, TileConfig, choose_config

REDUCE_BLOCK = 1024
"""Keys that a row's program of the second kernel reads at once: a 32k list is half of that."""


class TritonDraftLogits(DraftLogits):
    """``DraftLogits`` on a GPU (and, with TRITON_INTERPRET=1, slowly on CPU tensors)."""

    def __init__(
        self,
        head: Tensor,
        slots: DraftSlots,
        options: DraftOptions,
        own_ids: Tensor | None = None,
        *,
        packed: bool = False,
    ) -> None:
        """Move the tables to the head's device and allocate the workspace.

        Raises:
            ValueError: see ``DraftLogits``.
        """
        super().__init__(head, slots, options, own_ids)
        padding = -len(slots) % MAX_BLOCK_V if len(slots) else MAX_BLOCK_V

        def table(column: Tensor) -> Tensor:
            return torch.nn.functional.pad(column, (0, padding)).to(head.device)

        self._head_rows = table(slots.head_rows)
        self._token_ids = table(slots.token_ids)
        self._slot_bits = table(slots.language_bits)
        self._packed = packed
        self._weights = self.head[self._head_rows.long()] if packed else self.head

        backend = "hip" if torch.version.hip else "cuda"
        sizes = [len(slots.slots_of(language)) for language in range(len(slots.languages))]
        smallest = min(filter(None, sizes), default=0)
        aligned = self._weights.stride(0) % 16 == 0
        self._configs = [
            choose_config(backend, head.element_size(), batch, smallest, aligned)
            for batch in range(options.max_batch + 1)
        ]
        # Tiles of own tokens serve every language that there is.
        every = (1 << len(slots.languages)) - 1
        self._own = 0 if own_ids is None else own_ids.shape[2]
        self._tile_bits = {
            block_v: torch.nn.functional.pad(
                slots.tile_bits(block_v), (0, self._own // block_v), value=every
            ).to(head.device)
            for block_v in {config.block_v for config in self._configs}
        }
        entries = max(
            batch * len(self._tile_bits[config.block_v])
            for batch, config in enumerate(self._configs)
        )
        self._tile_keys = torch.empty(
            entries * options.top_k, dtype=torch.int64, device=head.device
        )
        self._tile_lse = torch.empty(
            entries if options.log_sum_exp else 1, dtype=torch.float32, device=head.device
        )

    def refresh(self) -> None:
        """Copy the head rows again, in place, so that captured graphs see them."""
        if self._packed:
            torch.index_select(self.head, 0, self._head_rows, out=self._weights)

    def warm_up(self) -> None:
        """Compile and load both kernels for every batch size, before serving and before capture.

        For hidden states in the head's dtype and int64 languages.
        """
        for config in set(self._configs):
            rows = min(config.block_b, self.options.max_batch)
            hidden = self.head.new_zeros(rows, self.head.shape[1])
            zeros = torch.zeros(rows, dtype=torch.int64, device=self.head.device)
            found = self(hidden, zeros, zeros)
            lse = None if found.log_sum_exp is None else found.log_sum_exp[None]
            self.merge(found.keys[None], lse)

    def __call__(
        self, hidden: Tensor, languages: Tensor, request_slots: Tensor | None = None
    ) -> DraftTokens:
        """See ``DraftLogits``."""
        self._check_batch(hidden.shape[0])
        if hidden.shape[0]:
            self.score_tiles(hidden, languages, request_slots)
        return self.reduce_tiles(languages)

    def score_tiles(
        self, hidden: Tensor, languages: Tensor, request_slots: Tensor | None = None
    ) -> None:
        """Launch the first kernel: best keys of every tile into the workspace."""
        batch = hidden.shape[0]
        config, tile_bits = self._launch_of(batch)
        own_tiles = self._own // config.block_v
        # Those of own tokens are scored by a program for each row.
        programs = len(tile_bits) + (min(batch, config.block_b) - 1) * own_tiles
        draft_tiles.score_tiles[(triton.cdiv(batch, config.block_b), programs)](
            hidden,
            self._weights,
            self._head_rows,
            self._token_ids,
            self._slot_bits,
            tile_bits,
            languages,
            self._tile_keys,
            self._tile_lse,
            self._slot_bits if self.own_ids is None else self.own_ids,  # not read without
            languages if request_slots is None else request_slots,  # not read either
            self.head,
            batch,
            len(tile_bits),
            hidden.stride(0),
            self._weights.stride(0),
            self.head.stride(0),
            len(self.slots.languages),
            *self.slots.shard,
            self.options.scale,
            self.options.softcap,
            D=self._weights.shape[1],
            TOP_K=self.options.top_k,
            LOG_SUM_EXP=self.options.log_sum_exp,
            SOFTCAP=self.options.softcap > 0,
            PACKED=self._packed,
            OWN=self._own,
            UPCAST=triton.knobs.runtime.interpret,
            BLOCK_B=config.block_b,
            BLOCK_V=config.block_v,
            BLOCK_K=config.block_k,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )

    def reduce_tiles(self, languages: Tensor) -> DraftTokens:
        """Launch the second kernel: the best of what ``score_tiles`` left in the workspace."""
        tile_bits = self._launch_of(len(languages))[1]
        tiles, top_k = len(tile_bits), self.options.top_k
        return self._reduce(
            len(languages),
            tiles,
            self._tile_keys,
            (tiles * top_k, top_k),
            self._tile_lse,
            (tiles, 1),
            by_language=(tile_bits, languages),
        )

    def merge(self, keys: Tensor, log_sum_exp: Tensor | None = None) -> DraftTokens:
        """See ``DraftLogits``."""
        ranks, batch, top_k = keys.shape
        lse = self._tile_lse if log_sum_exp is None else log_sum_exp.contiguous()
        return self._reduce(
            batch, ranks, keys.contiguous(), (top_k, batch * top_k), lse, (1, batch)
        )

    def _launch_of(self, batch: int) -> tuple[TileConfig, Tensor]:
        """Return the tile configuration for a batch size, and the languages of its tiles."""
        config = self._configs[batch]
        return config, self._tile_bits[config.block_v]

    def _reduce(
        self,
        batch: int,
        tiles: int,
        tile_keys: Tensor,
        key_strides: tuple[int, int],
        tile_lse: Tensor,
        lse_strides: tuple[int, int],
        by_language: tuple[Tensor, Tensor] | None = None,
    ) -> DraftTokens:
        top_k, device = self.options.top_k, self.head.device
        ids = torch.empty(batch, top_k, dtype=torch.int64, device=device)
        scores = torch.empty(batch, top_k, dtype=torch.float32, device=device)
        keys = torch.empty_like(ids)
        lse = torch.empty(batch, dtype=torch.float32, device=device)
        tile_bits, languages = by_language or (self._slot_bits, self._slot_bits)  # not read
        if batch:
            draft_tiles.reduce_tiles[(batch,)](
                tile_keys,
                tile_lse,
                tile_bits,
                languages,
                ids,
                scores,
                keys,
                lse,
                self.options.fallback_id,
                tiles,
                *key_strides,
                *lse_strides,
                TOP_K=top_k,
                LOG_SUM_EXP=self.options.log_sum_exp,
                BY_LANGUAGE=by_language is not None,
                BLOCK=REDUCE_BLOCK,
            )
        return DraftTokens(ids, scores, lse if self.options.log_sum_exp else None, keys)
