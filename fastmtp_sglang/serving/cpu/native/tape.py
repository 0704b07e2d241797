"""A forward pass noted once and swept again: its operators, with their buffers in one arena.

What was computed while recording lay in memory of its own. A tape gives each of these buffers a
place in an arena for SWEEP rows, and the same place to buffers that are never alive together; more
rows than that are swept in turns. Whatever else the operators name (weights, caches) keeps its
address, so a tape is void once a weight has moved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastmtp_sglang.serving.cpu.native.passes import SEEN, SWEEP

if TYPE_CHECKING:
    from fastmtp_sglang.serving.cpu.native.engine import Engine

# Results that are the same memory under another shape, or memory that nothing has been written to.
_HARMLESS = frozenset(
    f"aten.{name}"
    for name in (
        *("view", "_unsafe_view", "reshape", "split", "split_with_sizes", "slice", "select"),
        *("unsqueeze", "squeeze", "expand", "as_strided", "alias", "detach", "unflatten", "empty"),
        *("transpose", "permute", "chunk", "flatten", "t", "_reshape_alias", "new_empty"),
    )
)


class NotRecordable(Exception):
    """The pass did something that a tape cannot repeat."""


class Recording(TorchDispatchMode):
    """Notes the operators of an engine while it is open, and refuses whatever else computes."""

    def __init__(self, engine: Engine, inputs: list[Tensor], **of_rows: Tensor) -> None:
        """Prepare to record.

        Args:
            engine: whose operators are noted.
            inputs: float tensors [rows, width] that the pass starts from.
            of_rows: int64 tensors that it is given for its rows, by the names of `Engine.sweep`.
                At least two rows: of one alone, views do not tell how far apart rows lie.
        """
        super().__init__()
        self._engine = engine
        self._inputs = inputs
        self._rows = len(next(iter((*inputs, *of_rows.values()))))
        self._of_rows = {name: tensor.data_ptr() for name, tensor in of_rows.items()}
        self._owned: list[Tensor] = list(self._inputs)
        self._ops: list[np.ndarray] = []

    def __enter__(self) -> Recording:
        self._engine.recording = self
        return super().__enter__()

    def __exit__(self, *args: Any) -> None:
        self._engine.recording = None
        super().__exit__(*args)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if str(func).rsplit(".", 1)[0] not in _HARMLESS:
            raise NotRecordable(str(func))
        return func(*args, **(kwargs or {}))

    def own(self, made: Tensor) -> None:
        """Take a result into account."""
        self._owned.append(made)

    def note(self, op: np.ndarray, rows: int, of_rows: dict[str, Tensor]) -> None:
        """Add an operator.

        Raises:
            NotRecordable: it is given other rows than the pass.
        """
        if rows not in (self._rows, min(self._rows, SWEEP)):
            raise NotRecordable(f"an operator of {rows} rows in a pass of {self._rows}")
        for name, tensor in of_rows.items():
            if self._of_rows.get(name) != tensor.data_ptr():
                raise NotRecordable(f"{name} of an operator are not those of the pass")
        self._ops.append(op.copy())

    def tape(self, output: object) -> Tape:
        """The tape of what was noted; `output` [rows, width] is what the pass returns.

        Raises:
            NotRecordable: the output was not computed by an operator, or is more than one tensor.
        """
        if not isinstance(output, Tensor):
            raise NotRecordable(f"a {type(output).__name__}")
        ops = np.stack(self._ops)
        starts = np.array([tensor.data_ptr() for tensor in self._owned])
        sizes = np.array([tensor.nbytes for tensor in self._owned])
        owner = _owners(ops, starts, sizes)
        (last,) = _owners(np.array([[output.data_ptr()]]), starts, sizes)[0]
        if last < len(self._inputs) or output.data_ptr() != starts[last]:
            raise NotRecordable("the result is not that of an operator")
        return Tape(self._engine, ops, owner, self._owned, len(self._inputs), last)


def _owners(fields: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """For each field the number of the buffer into which it points, or -1."""
    order = np.argsort(starts)
    place = np.searchsorted(starts[order], fields, side="right") - 1
    found = order[np.maximum(place, 0)]
    inside = (place >= 0) & (fields < starts[found] + sizes[found])
    return np.where(inside, found, -1)


class Tape:
    """Operators that are swept again for other rows."""

    def __init__(
        self,
        engine: Engine,
        ops: np.ndarray,
        owner: np.ndarray,
        owned: list[Tensor],
        inputs: int,
        output: int,
    ) -> None:
        self._engine = engine
        self._ops = np.ascontiguousarray(ops)
        self._at = self._ops.ctypes.data
        self._width = {i: owned[i].shape[1] for i in (*range(inputs), output)}
        self._dtype = owned[output].dtype
        row_bytes = [tensor.shape[1] * tensor.element_size() for tensor in owned]
        offsets = ops - np.where(owner >= 0, np.array([t.data_ptr() for t in owned])[owner], 0)
        # Buffers from outside get their addresses at each sweep.
        self._outside = {
            number: (*np.nonzero(owner == number), offsets[owner == number], row_bytes[number])
            for number in (*range(inputs), output)
        }
        self._inputs, self._output = inputs, output
        places, size = _places(owner, row_bytes, set(self._outside))
        self._arena = torch.empty(size * SWEEP, dtype=torch.uint8)
        for number, place in places.items():
            here = owner == number
            self._ops[here] = self._arena.data_ptr() + place * SWEEP + offsets[here]

    def __len__(self) -> int:
        return len(self._ops)

    def sweep(self, rows: int, inputs: list[Tensor] | None = None, **of_rows: Tensor) -> Tensor:
        """Compute the pass for other rows.

        Args:
            rows: how many.
            inputs: as recorded, contiguous.
            of_rows: int64 tensors by the names of `Engine.sweep`, contiguous.

        Returns:
            the output, [rows, width].
        """
        out = torch.empty(rows, self._width[self._output], dtype=self._dtype)
        outside = {number: tensor.data_ptr() for number, tensor in enumerate(inputs or ())}
        outside[self._output] = out.data_ptr()
        addresses = {name: tensor.data_ptr() for name, tensor in of_rows.items()}
        for first in range(0, rows, SWEEP):
            for number, address in outside.items():
                op, field, offsets, row_bytes = self._outside[number]
                self._ops[op, field] = address + offsets + first * row_bytes
            self._engine.sweep(
                self._at,
                len(self._ops),
                min(SWEEP, rows - first),
                **{
                    name: address + first * 8 * (SEEN if name == "visible" else 1)
                    for name, address in addresses.items()
                },
            )
        return out


def _places(
    owner: np.ndarray, row_bytes: list[int], outside: set[int]
) -> tuple[dict[int, int], int]:
    """A place in the arena for each buffer, in bytes for one row, and the arena's size.

    First fit in the order of first use; a place is free again after its buffer's last use.
    """
    lives: dict[int, list[int]] = {}
    for step, fields in enumerate(owner):
        for number in set(fields[fields >= 0].tolist()) - outside:
            lives.setdefault(number, [step, step])[1] = step
    places: dict[int, int] = {}
    size = 0
    alive: list[int] = []
    for number, (start, _) in lives.items():
        alive = [other for other in alive if lives[other][1] >= start]
        place = 0
        for other in sorted(alive, key=places.__getitem__):
            if place + row_bytes[number] <= places[other]:
                break
            place = places[other] + row_bytes[other]
        places[number] = place
        alive.append(number)
        size = max(size, place + row_bytes[number])
    return places, size
