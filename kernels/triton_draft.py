"""Draft logits on a GPU: scores fused with their reduction, every needed head row read once.

Two kernels. ``_score_tiles``: a program takes a tile of slots, returns at once if no row of the
batch speaks a language of the tile, reads the head rows that some row needs, scores the whole batch
with ``tl.dot`` and keeps the best keys of each row. ``_reduce_tiles``: a program a row takes the
maximum over the tiles that serve the row's language. It also merges tensor-parallel ranks, which
are to it nothing but a few more tiles.

Rows are gathered from the live head (no copy), or, packed, read from a copy in slot order. Nearest
to this is FlashSampling (arXiv 2603.15854), which fuses the head with sampling but has neither a
subset of rows nor a mask a row.

Called by the draft head inside CUDA graphs: static shapes, no host reads, a workspace allocated at
construction. Keys make ties, tile order and sharding irrelevant (``fastmtp_kernels.keys``).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastmtp_kernels.draft_logits import DraftLogits, DraftOptions, DraftTokens
from fastmtp_kernels.slots import MAX_LANGUAGES, DraftSlots
from fastmtp_kernels.tile_configs import MAX_BLOCK_V, TileConfig, choose_config

_EMPTY_KEY = tl.constexpr(-(1 << 63))
_GREATEST_KEY = tl.constexpr((1 << 63) - 1)
_MAX_LANGUAGES = tl.constexpr(MAX_LANGUAGES)
REDUCE_BLOCK = 1024
"""Keys that a row's program of the second kernel reads at once: a 32k list is half of that."""


@triton.jit
def _bitwise_or(a, b):
    return a | b


@triton.jit
def _row_bits(languages, rows, valid):
    """The language bit of each row; 0 for a row without a list."""
    language = tl.load(languages + rows, mask=valid, other=-1).to(tl.int32)
    listed = (language >= 0) & (language < _MAX_LANGUAGES)
    return tl.where(listed, 1 << tl.where(listed, language, 0), 0)


@triton.jit
def _encode_keys(scores, ids):
    bits = tl.where(scores == 0, 0.0, scores).to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)


@triton.jit
def _log_sum_exp(scores, candidate):
    """Over axis 0; an infinite maximum must not turn into inf - inf."""
    largest = tl.max(tl.where(candidate, scores, -float("inf")), axis=0)
    base = tl.where(tl.abs(largest) == float("inf"), 0.0, largest)
    shifted = tl.where(candidate, scores - base, -float("inf"))
    return base + tl.log(tl.sum(tl.exp(shifted), axis=0))


# Arguments that change from call to call: specializing on them would compile while serving.
@triton.jit(do_not_specialize=["batch", "tiles"], do_not_specialize_on_alignment=["languages"])
def _score_tiles(
    hidden,  # [B, D]
    head,  # [V, D]
    head_rows,  # int32 [S], S a multiple of BLOCK_V; padding has no language bit
    token_ids,  # int32 [S]
    slot_bits,  # int32 [S]
    tile_bits,  # int32 [tiles]
    languages,  # int [B]
    tile_keys,  # int64 [B, tiles, TOP_K], out; only where the tile serves the row's language
    tile_lse,  # float32 [B, tiles], out, likewise
    batch,
    tiles,
    hidden_stride,
    head_stride,
    scale,
    softcap,
    D: tl.constexpr,
    TOP_K: tl.constexpr,
    LOG_SUM_EXP: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PACKED: tl.constexpr,
    UPCAST: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Blocks of the batch run side by side, so that the second reads the tile from the L2 cache.
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    tile = tl.program_id(1)
    row_bits = _row_bits(languages, rows, rows < batch)
    batch_bits = tl.reduce(row_bits, 0, _bitwise_or)
    if (tl.load(tile_bits + tile) & batch_bits) == 0:
        return

    slots = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    bits = tl.load(slot_bits + slots)
    needed = (bits & batch_bits) != 0  # at a border of languages a tile reads only what it must
    head_row = slots if PACKED else tl.load(head_rows + slots)
    k = tl.arange(0, BLOCK_K)
    head_tile = head + head_row.to(tl.int64)[:, None] * head_stride + k[None, :]
    hidden_tile = hidden + rows[None, :] * hidden_stride + k[:, None]
    scores = tl.zeros([BLOCK_V, BLOCK_B], dtype=tl.float32)
    for start in range(0, D, BLOCK_K):
        head_mask = needed[:, None]
        hidden_mask = rows[None, :] < batch
        if D % BLOCK_K != 0:
            head_mask = head_mask & (k[None, :] < D - start)
            hidden_mask = hidden_mask & (k[:, None] < D - start)
        w = tl.load(head_tile + start, mask=head_mask, other=0.0)
        h = tl.load(hidden_tile + start, mask=hidden_mask, other=0.0).to(w.dtype)
        if UPCAST:  # the interpreter's dot would multiply the bit patterns of bfloat16
            w = w.to(tl.float32)
            h = h.to(tl.float32)
        scores = tl.dot(w, h, scores, input_precision="ieee")

    scores = scores * scale
    if SOFTCAP:  # tanh(x) = 1 - 2 / (exp(2x) + 1), right at both infinities
        scores = softcap * (1.0 - 2.0 / (tl.exp(2.0 * (scores / softcap)) + 1.0))
    candidate = ((bits[:, None] & row_bits[None, :]) != 0) & (scores > -float("inf"))
    ids = tl.load(token_ids + slots)
    keys = tl.where(candidate, _encode_keys(scores, ids[:, None]), _EMPTY_KEY)

    out = rows * tiles + tile
    best = tl.max(keys, axis=0)
    tl.store(tile_keys + out * TOP_K, best, mask=rows < batch)
    for j in range(1, TOP_K):  # keys are unique, so the next one is the greatest below
        best = tl.max(tl.where(keys < best[None, :], keys, _EMPTY_KEY), axis=0)
        tl.store(tile_keys + out * TOP_K + j, best, mask=rows < batch)
    if LOG_SUM_EXP:
        tl.store(tile_lse + out, _log_sum_exp(scores, candidate), mask=rows < batch)


@triton.jit(
    do_not_specialize=[
        "tiles",
        "key_row_stride",
        "key_tile_stride",
        "lse_row_stride",
        "lse_tile_stride",
    ],
    do_not_specialize_on_alignment=["languages", "tile_keys", "tile_lse"],
)
def _reduce_tiles(
    tile_keys,  # int64, TOP_K of them at row * key_row_stride + tile * key_tile_stride
    tile_lse,  # float32, at row * lse_row_stride + tile * lse_tile_stride
    tile_bits,  # int32 [tiles], read if BY_LANGUAGE
    languages,  # int [B], read if BY_LANGUAGE
    ids,  # int64 [B, TOP_K], out
    scores,  # float32 [B, TOP_K], out
    keys,  # int64 [B, TOP_K], out
    lse,  # float32 [B], out
    fallback_id,
    tiles,
    key_row_stride,
    key_tile_stride,
    lse_row_stride,
    lse_tile_stride,
    TOP_K: tl.constexpr,
    LOG_SUM_EXP: tl.constexpr,
    BY_LANGUAGE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    row_bit = 0
    if BY_LANGUAGE:
        row_bit = _row_bits(languages, row, True)

    best = tl.full([], _GREATEST_KEY, tl.int64)
    for j in tl.static_range(TOP_K):
        previous = best
        largest = tl.full([BLOCK], _EMPTY_KEY, tl.int64)
        for start in range(0, tiles * TOP_K, BLOCK):
            entry = start + lanes
            tile = entry // TOP_K
            serves = entry < tiles * TOP_K
            if BY_LANGUAGE:
                serves = serves & ((tl.load(tile_bits + tile, mask=serves, other=0) & row_bit) != 0)
            offset = row * key_row_stride + tile * key_tile_stride + entry % TOP_K
            key = tl.load(tile_keys + offset, mask=serves, other=_EMPTY_KEY)
            largest = tl.where((key > largest) & (key < previous), key, largest)
        best = tl.max(largest, axis=0)
        ordered = (best >> 32).to(tl.int32)
        score = tl.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).to(tl.float32, bitcast=True)
        token_id = 0x7FFFFFFF - (best & 0x7FFFFFFF)
        empty = best == _EMPTY_KEY
        tl.store(ids + row * TOP_K + j, tl.where(empty, fallback_id, token_id))
        tl.store(scores + row * TOP_K + j, tl.where(empty, -float("inf"), score))
        tl.store(keys + row * TOP_K + j, best)

    if LOG_SUM_EXP:
        # The running sum over blocks of tiles keeps one value a lane: log(e^a + e^b) lane by lane.
        total = tl.full([BLOCK], -float("inf"), tl.float32)
        for start in range(0, tiles, BLOCK):
            tile = start + lanes
            serves = tile < tiles
            if BY_LANGUAGE:
                serves = serves & ((tl.load(tile_bits + tile, mask=serves, other=0) & row_bit) != 0)
            offset = row * lse_row_stride + tile * lse_tile_stride
            part = tl.load(tile_lse + offset, mask=serves, other=-float("inf"))
            larger = tl.maximum(total, part)
            base = tl.where(tl.abs(larger) == float("inf"), 0.0, larger)
            total = base + tl.log(tl.exp(total - base) + tl.exp(part - base))
        tl.store(lse + row, _log_sum_exp(total, total > -float("inf")))


class TritonDraftLogits(DraftLogits):
    """``DraftLogits`` on a GPU (and, with TRITON_INTERPRET=1, slowly on CPU tensors)."""

    def __init__(
        self, head: Tensor, slots: DraftSlots, options: DraftOptions, *, packed: bool = False
    ) -> None:
        """Move the tables to the head's device and allocate the workspace.

        Raises:
            ValueError: see ``DraftLogits``.
        """
        super().__init__(head, slots, options)
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
        self._tile_bits = {
            block_v: slots.tile_bits(block_v).to(head.device)
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
            found = self(hidden, torch.zeros(rows, dtype=torch.int64, device=self.head.device))
            lse = None if found.log_sum_exp is None else found.log_sum_exp[None]
            self.merge(found.keys[None], lse)

    def __call__(self, hidden: Tensor, languages: Tensor) -> DraftTokens:
        """See ``DraftLogits``."""
        self._check_batch(hidden.shape[0])
        if hidden.shape[0]:
            self.score_tiles(hidden, languages)
        return self.reduce_tiles(languages)

    def score_tiles(self, hidden: Tensor, languages: Tensor) -> None:
        """Launch the first kernel: best keys of every tile into the workspace."""
        batch = hidden.shape[0]
        config, tile_bits = self._launch_of(batch)
        _score_tiles[(triton.cdiv(batch, config.block_b), len(tile_bits))](
            hidden,
            self._weights,
            self._head_rows,
            self._token_ids,
            self._slot_bits,
            tile_bits,
            languages,
            self._tile_keys,
            self._tile_lse,
            batch,
            len(tile_bits),
            hidden.stride(0),
            self._weights.stride(0),
            self.options.scale,
            self.options.softcap,
            D=self._weights.shape[1],
            TOP_K=self.options.top_k,
            LOG_SUM_EXP=self.options.log_sum_exp,
            SOFTCAP=self.options.softcap > 0,
            PACKED=self._packed,
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
            _reduce_tiles[(batch,)](
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
