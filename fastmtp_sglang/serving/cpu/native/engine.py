"""The native operators as functions of torch tensors, computed at once or recorded for later.

While a `Recording` is open every operator is computed and noted with its addresses; `tape` turns
the notes into a list that can be swept again without Python. Tensors are float32 or bfloat16 with
contiguous rows. One process has one engine; SGLang's scheduler calls it from one thread.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastmtp_sglang.serving.cpu.native import rows as by_row
from fastmtp_sglang.serving.cpu.native.attention import attend, scratch_bytes
from fastmtp_sglang.serving.cpu.native.best import best
from fastmtp_sglang.serving.cpu.native.packing import Packed
from fastmtp_sglang.serving.cpu.native.passes import (
    FIELDS,
    IDS,
    PARTS,
    PARTS_A_ROW,
    PASS_FIELDS,
    POSITIONS,
    ROWS,
    SCRATCH,
    SCRATCH_BYTES,
    SLOTS,
    SWEEP,
    VISIBLE,
)
from fastmtp_sglang.serving.cpu.native.product import FLOATS, product, way_to_read
from fastmtp_sglang.serving.cpu.native.team import Team

if TYPE_CHECKING:
    from fastmtp_sglang.serving.cpu.native.tape import Recording

# What the row-wise operators and short contexts need; grows with what is asked for.
_SMALLEST_SCRATCH = 1 << 20


class Engine:
    """The team, its scratch memory, and the operators."""

    def __init__(self, workers: int) -> None:
        self._team = Team(workers)
        self._ops = np.zeros((1, FIELDS), dtype=np.int64)
        self._given = np.zeros(PASS_FIELDS, dtype=np.int64)
        self._ops_at, self._given_at = self._ops.ctypes.data, self._given.ctypes.data
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self.reserve(_SMALLEST_SCRATCH)
        self._longest = 0
        self.recording: Recording | None = None

    def reserve(self, size: int) -> None:
        """Make sure that each worker has `size` bytes of scratch memory."""
        size = -(-size // 64) * 64
        if size > self._given[SCRATCH_BYTES]:
            self._scratch = torch.empty(size * self._team.workers, dtype=torch.uint8)
            self._given[SCRATCH], self._given[SCRATCH_BYTES] = self._scratch.data_ptr(), size

    def reserve_keys(self, longest: int) -> None:
        """Let attention be over up to so many keys."""
        self._longest = max(self._longest, longest)

    def sweep(
        self,
        ops: int,
        count: int,
        rows: int,
        *,
        ids: int = 0,
        positions: int = 0,
        slots: int = 0,
        visible: int = 0,
    ) -> None:
        """Compute `count` operators over rows.

        Args:
            ops: address of int64 [count, FIELDS].
            count: how many.
            rows: how many.
            ids: the address of their token ids; this and the others as `passes` says.
        """
        given = self._given
        given[ROWS], given[IDS], given[POSITIONS] = rows, ids, positions
        given[SLOTS], given[VISIBLE] = slots, visible
        self._team.compute(ops, count, self._given_at)

    def new(self, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """Memory for a result."""
        made = torch.empty(rows, width, dtype=dtype)
        if self.recording is not None:
            self.recording.own(made)
        return made

    def product(self, x: Tensor, weight: Packed, bias: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias.

        Args:
            x: [..., inputs].
            weight: of any of the two dtypes.
            bias: float32 [outputs] or None.

        Returns:
            [..., outputs] of x's dtype; a row's bits do not depend on the other rows.
        """
        inputs = x.shape[-1]
        flat = _by_rows(x, inputs)
        rows = len(flat)
        out = self.new(rows, weight.outputs, x.dtype)
        bf16 = x.dtype == torch.bfloat16
        paired = weight.panels.dtype == torch.bfloat16
        reading = way_to_read(inputs) if bf16 and paired else FLOATS
        if bf16 and reading == FLOATS:
            flat = self.widen(flat)
        of_weight = weight.panels.data_ptr(), inputs, weight.outputs
        of_all = 0 if bias is None else bias.data_ptr(), int(bf16), int(paired), reading
        recording = self.recording
        for first in range(0, rows, SWEEP):
            # A tape is swept in turns of so many rows anyway.
            self.recording = None if first else recording
            ends = flat[first:].data_ptr(), flat.stride(0), out[first:].data_ptr(), weight.outputs
            count = min(SWEEP, rows - first)
            self.run(count, product.address, *ends, *of_weight, *of_all, parts=len(weight.panels))
        self.recording = recording
        return out.view(*x.shape[:-1], weight.outputs)

    def widen(self, x: Tensor) -> Tensor:
        """The float32 of bfloat16 rows [N, width]."""
        rows, width = x.shape
        out = self.new(rows, width, torch.float32)
        self.run(
            rows,
            by_row.widen.address,
            x.data_ptr(),
            x.stride(0),
            out.data_ptr(),
            width,
            parts_a_row=1,
        )
        return out

    def norm(
        self, x: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None = None
    ) -> Tensor:
        """RMSNorm of x + residual over the last dimension; the sum is left in `residual`.

        Args:
            x: [..., width].
            weight: float32 [width].
            epsilon: added to the mean square.
            residual: as x, written in place, or None.

        Returns:
            as x.
        """
        width = x.shape[-1]
        # Heads of a row that lie side by side are groups of one row.
        grouped = x.dim() == 3 and x.stride(1) == width and x.stride(2) == 1
        groups = x.shape[1] if grouped else 1
        flat = x if grouped else _by_rows(x, width)
        rows = len(flat)
        out = self.new(rows, groups * width, x.dtype)
        kept = None if residual is None else _by_rows(residual, width)
        self.reserve(width * 8)
        self.run(
            rows,
            by_row.norm.address,
            flat.data_ptr(),
            flat.stride(0),
            out.data_ptr(),
            groups * width,
            0 if kept is None else kept.data_ptr(),
            0 if kept is None else kept.stride(0),
            weight.data_ptr(),
            width,
            groups,
            int(x.dtype == torch.bfloat16),
            _bits(epsilon),
            parts_a_row=1,
        )
        return out.view(x.shape)

    def gate(self, x: Tensor, activation: str) -> Tensor:
        """activation(left half of x) * right half; `activation` is one of `rows.GATES`."""
        width = x.shape[-1] // 2
        flat = _by_rows(x, 2 * width)
        out = self.new(len(flat), width, x.dtype)
        self.reserve(width * 8)
        self.run(
            len(flat),
            by_row.gate.address,
            flat.data_ptr(),
            flat.stride(0),
            out.data_ptr(),
            width,
            width,
            by_row.GATES.index(activation),
            int(x.dtype == torch.bfloat16),
            parts_a_row=1,
        )
        return out.view(*x.shape[:-1], width)

    def rotate(self, positions: Tensor, query: Tensor, key: Tensor, angles: Tensor) -> None:
        """Rotary positions of query and key in place.

        Args:
            positions: int64 [N].
            query: [N, heads, size], contiguous heads.
            key: [N, key heads, size], contiguous heads.
            angles: float32 [positions, turned part of a head], cosines and then sines.
        """
        self.run(
            len(query),
            by_row.rotate.address,
            query.data_ptr(),
            query.stride(0),
            query.shape[1],
            key.data_ptr(),
            key.stride(0),
            key.shape[1],
            query.shape[2],
            angles.shape[1],
            angles.data_ptr(),
            int(query.dtype == torch.bfloat16),
            parts_a_row=1,
            positions=positions,
        )

    def keep(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
    ) -> None:
        """Write keys and values [N, heads * size] into slots (int64 [N]) of contiguous caches."""
        self.run(
            len(key),
            by_row.keep.address,
            key.data_ptr(),
            key.stride(0),
            value.data_ptr(),
            value.stride(0),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            key.shape[1],
            value.shape[1],
            int(key.dtype == torch.bfloat16),
            int(key_cache.dtype == torch.bfloat16),
            parts_a_row=1,
            slots=slots,
        )

    def attend(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        visible: Tensor,
        *,
        scale: float,
        window: int = -1,
    ) -> Tensor:
        """Attention over what each row sees.

        Args:
            query: [N, heads, size], contiguous heads.
            key_cache: [slots, key heads, size].
            value_cache: [slots, key heads, value size].
            visible: int64 [N, SEEN]; `reserve_keys` has been called for the longest.
            scale: factor of the scores.
            window: positions behind the row that it sees, or -1 for all.

        Returns:
            [N, heads * value size].
        """
        rows, heads, size = query.shape
        key_heads, value_size = value_cache.shape[1:]
        self.reserve(scratch_bytes(self._longest, heads, key_heads, size, value_size))
        out = self.new(rows, heads * value_size, query.dtype)
        self.run(
            rows,
            attend.address,
            query.data_ptr(),
            query.stride(0),
            out.data_ptr(),
            heads * value_size,
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            heads,
            key_heads,
            size,
            value_size,
            _bits(scale),
            window,
            int(query.dtype == torch.bfloat16),
            int(key_cache.dtype == torch.bfloat16),
            parts_a_row=key_heads,
            visible=visible,
        )
        return out

    def join(self, first: Tensor, second: Tensor, positions: Tensor) -> Tensor:
        """[N, 2 * width] of two [N, width]; the second is zeros where its position (int64) is 0."""
        rows, width = first.shape
        out = self.new(rows, 2 * width, first.dtype)
        self.run(
            rows,
            by_row.join.address,
            first.data_ptr(),
            first.stride(0),
            second.data_ptr(),
            second.stride(0),
            out.data_ptr(),
            width,
            int(first.dtype == torch.bfloat16),
            parts_a_row=1,
            positions=positions,
        )
        return out

    def embed(self, ids: Tensor, table: Tensor, factor: float = 1.0) -> Tensor:
        """The rows of `table` [entries, width] that int64 ids [N] name, times a factor."""
        width = table.shape[1]
        out = self.new(len(ids), width, table.dtype)
        self.reserve(width * 4)
        self.run(
            len(ids),
            by_row.embed.address,
            table.data_ptr(),
            width,
            out.data_ptr(),
            width,
            int(table.dtype == torch.bfloat16),
            _bits(factor),
            parts_a_row=1,
            ids=ids,
        )
        return out

    def best(self, scores: Tensor, k: int, log_sum_exp: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The k largest of float32 scores [N, n], as `best.best` says.

        Returns:
            values float32 [N, k], places int64 [N, k], log-sum-exp float32 [N], empty if not asked.
        """
        rows, width = scores.shape
        values = torch.empty(rows, k)
        places = torch.empty(rows, k, dtype=torch.int64)
        log_sum = torch.empty(rows if log_sum_exp else 0)
        self.run(
            rows,
            best.address,
            scores.data_ptr(),
            width,
            k,
            values.data_ptr(),
            places.data_ptr(),
            log_sum.data_ptr() if log_sum_exp else 0,
            parts_a_row=1,
        )
        return values, places, log_sum

    def run(
        self, rows: int, *fields: int, parts_a_row: int = 0, parts: int = 0, **of_rows: Tensor
    ) -> None:
        """Compute the operator of these fields, as `passes` and `sweep` say."""
        op = self._ops[0]
        op[: len(fields)] = fields
        op[PARTS_A_ROW], op[PARTS] = parts_a_row, parts
        if self.recording is not None:
            self.recording.note(op, rows, of_rows)
        if rows:
            self.sweep(self._ops_at, 1, rows, **{name: t.data_ptr() for name, t in of_rows.items()})


@cache
def engine() -> Engine:
    """The engine of this process, with as many workers as torch has threads."""
    return Engine(torch.get_num_threads())


def _by_rows(x: Tensor, width: int) -> Tensor:
    """x as [rows, width] with contiguous rows, without a copy where it lies so."""
    if x.dim() == 2 and x.stride(1) == 1:
        return x
    rows = x.reshape(-1, width)
    # Of columns that lie apart `reshape` makes a view too.
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _bits(value: float) -> int:
    """The bits of a float32, below zero: a tape must not take them for an address."""
    return struct.unpack("<i", struct.pack("<f", value))[0] - (1 << 32)
