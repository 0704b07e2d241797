"""LoRA adapters on a CPU: SGLang's manager, pool and layers, with products of our own.

SGLang's torch backend multiplies the neighbours that share an adapter at once, so that a row's bits
depend on who they are; and it pins memory, which takes a GPU. Here each adapter's matrices are
packed as the target's own weights are, and a row's bits depend on its adapter and itself alone.
What an adapter adds is computed in float32 and rounded once. The draft head is not adapted, as
SGLang's EAGLE is not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE
from sglang.srt.lora import layers
from sglang.srt.lora.backend import lora_registry
from sglang.srt.lora.backend.base_backend import BaseLoRABackend
from sglang.srt.lora.lora_manager import LoRAManager
from sglang.srt.lora.utils import generate_sequence_lengths, get_lm_head_pruned_lens
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastmtp_sglang.contract.limits import CPU_LORA_BACKEND
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.serving.cpu.native.engine import engine
from fastmtp_sglang.serving.cpu.native.packing import Packed
from fastmtp_sglang.serving.cpu.packed_linear import PackedLMHeadMethod, use_native_rows


@dataclass
class AdaptedRows:
    """Which rows of a batch wear which adapter; what SGLang's manager and layers ask of a batch."""

    # By the pool's slot; rows of the unadapted target are in none.
    by_slot: dict[int, Tensor]
    # How many rows there are; SGLang compares it with those of its lm_head.
    expected_tokens: int
    ranks: list[int]
    scalings: list[float]
    has_active_lora: bool = False
    is_prefill: bool = False
    use_cuda_graph: bool = False

    @classmethod
    def of(
        cls, lengths: list[int], indices: list[int], ranks: list[int], scalings: list[float]
    ) -> AdaptedRows:
        """Rows of requests, so many of each, that wear the adapters of these slots."""
        worn = [slot if ranks[slot] else -1 for slot in indices]
        slots = torch.tensor(worn).repeat_interleave(torch.tensor(lengths))
        by_slot = {slot: (slots == slot).nonzero().flatten() for slot in set(worn) - {-1}}
        return cls(by_slot, len(slots), ranks, scalings)


class CpuLoRABackend(BaseLoRABackend):
    """SGLang's interface of a LoRA backend, for linear layers, embedding and lm_head."""

    name = CPU_LORA_BACKEND

    def __init__(self, max_loras_per_batch: int, device: torch.device, **_: Any) -> None:
        super().__init__(max_loras_per_batch, device)
        # By where a buffer of the pool lies, slot and part.
        self._packed: dict[tuple[int, int, int], Packed] = {}

    def validate_lora_targets(self, base_model: torch.nn.Module, target_modules: set[str]) -> None:
        """Refuse what has no product here.

        Raises:
            FastMTPError: for the experts of a mixture.
        """
        of_experts = {"gate_up_proj", "down_proj"} & target_modules
        if of_experts and any(isinstance(module, FusedMoE) for module in base_model.modules()):
            raise FastMTPError(
                f"Adapters on the experts of a mixture ({', '.join(sorted(of_experts))}) are not "
                "served by the CPU platform of fastmtp-sglang. Leave them out of "
                "--lora-target-modules, or merge the adapter into the target."
            )

    def forget(self, slots: set[int]) -> None:
        """Drop the packed matrices of slots that other adapters moved into."""
        self._packed = {key: packed for key, packed in self._packed.items() if key[1] not in slots}

    def prepare_lora_batch(
        self,
        forward_batch: Any,
        weight_indices: list[int],
        lora_ranks: list[int],
        scalings: list[float],
        use_decode_cuda_graph: bool,
        use_prefill_cuda_graph: bool = False,
    ) -> None:
        """Note which rows wear what; one or several rows of each request, as its mode has it."""
        lengths = generate_sequence_lengths(forward_batch, device=torch.device("cpu")).tolist()
        self.batch_info = AdaptedRows.of(lengths, weight_indices, lora_ranks, scalings)
        self.lm_head_batch_info = self.lm_head_pass_batch_infos = None
        pruned = get_lm_head_pruned_lens(forward_batch)
        if pruned is None:
            return
        self.lm_head_batch_info = AdaptedRows.of(pruned, weight_indices, lora_ranks, scalings)
        passes = self._get_lm_head_pass_segments(weight_indices, pruned)
        if passes is not None:
            self.lm_head_pass_batch_infos = [
                AdaptedRows.of(counts, indices, lora_ranks, scalings) for indices, counts in passes
            ]

    def forward_with_base(
        self,
        layer: torch.nn.Module,
        x: Tensor,
        base_fn: Callable[[], Tensor],
        lora_a: Tensor,
        lora_b: Tensor,
        output_offset: Tensor,
        offsets: tuple[int, ...],
        *,
        all_reduce: Callable[[Tensor], Tensor] | None = None,
        kind: str = "linear",
        pruned_batch_info: AdaptedRows | None = None,
    ) -> Tensor:
        """A layer's output [N, outputs] with what the adapters of its rows add.

        Args:
            layer: SGLang's wrapper of a layer.
            x: [N, inputs]; token ids of an embedding.
            base_fn: the layer's own output.
            lora_a: [slots, parts * rank, inputs], the pool's buffer; [slots, rank, vocabulary].
            lora_b: [slots, outputs, rank].
            output_offset: not used, `offsets` on the device.
            offsets: where the outputs of each part begin and end.
            all_reduce: the sum over ranks that each hold a share of `inputs`.
            kind: whose layer this is.
            pruned_batch_info: of an lm_head that scores the last rows only.
        """
        if isinstance(layer, layers.ParallelLMHeadWithLoRA):
            output = _scores(layer.base_layer, x)
        else:
            output = base_fn()
        rows: AdaptedRows = pruned_batch_info or self.batch_info
        if isinstance(layer, layers.VocabParallelEmbeddingWithLoRA):
            narrow = self._looked_up(x, lora_a, rows)
        else:
            narrow = self._narrow(x, lora_a, rows, parts=len(offsets) - 1)
        if all_reduce is not None:
            output, narrow = all_reduce(output), all_reduce(narrow)
        return self._add(output, narrow, lora_b, offsets, rows)

    def _narrow(self, x: Tensor, a: Tensor, rows: AdaptedRows, parts: int) -> Tensor:
        """float32 [N, parts * rank]: x @ A.T of each row's adapter, times its scaling."""
        narrow = torch.zeros(len(x), a.shape[1])
        for slot, here in rows.by_slot.items():
            width = parts * rows.ranks[slot]
            packed = self._pack(a, slot, 0, a[slot, :width])
            product = engine().product(x[here].float(), packed)
            narrow[here, :width] = product * rows.scalings[slot]
        return narrow

    def _looked_up(self, ids: Tensor, a: Tensor, rows: AdaptedRows) -> Tensor:
        """float32 [N, rank]: the columns of each row's adapter for token ids."""
        narrow = torch.zeros(len(ids), a.shape[1])
        for slot, here in rows.by_slot.items():
            rank = rows.ranks[slot]
            narrow[here, :rank] = a[slot, :rank, ids[here]].T.float() * rows.scalings[slot]
        return narrow

    def _add(
        self, output: Tensor, narrow: Tensor, b: Tensor, offsets: tuple[int, ...], rows: AdaptedRows
    ) -> Tensor:
        """Output [N, outputs] with each part of `narrow` @ B.T added, in place."""
        for slot, here in rows.by_slot.items():
            rank = rows.ranks[slot]
            for part, (first, end) in enumerate(itertools.pairwise(offsets)):
                packed = self._pack(b, slot, part, b[slot, first:end, :rank])
                product = engine().product(
                    narrow[here, part * rank : (part + 1) * rank].contiguous(), packed
                )
                summed = output[here, first:end].float() + product
                output[here, first:end] = summed.to(output.dtype)
        return output

    def _pack(self, buffer: Tensor, slot: int, part: int, matrix: Tensor) -> Packed:
        key = (buffer.data_ptr(), slot, part)
        if key not in self._packed:
            self._packed[key] = Packed.of(matrix)
        return self._packed[key]


def _scores(lm_head: torch.nn.Module, x: Tensor) -> Tensor:
    """What SGLang computes with torch's product, whose bits depend on the batch."""
    return lm_head.quant_method.apply(lm_head, x)


class _NothingPinned(TorchFunctionMode):
    """Torch as it is without a GPU to copy to: memory that is asked to be pinned is ordinary."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.pin_memory:
            return args[0]
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)
        return func(*args, **kwargs)


def install() -> None:
    """Put ours in the place of SGLang's backend of torch operators; idempotent."""
    lora_registry.register_lora_backend(CPU_LORA_BACKEND)(lambda: CpuLoRABackend)
    manager = LoRAManager
    if hasattr(manager.init_state, "__wrapped__"):
        return
    init_state, notify = manager.init_state, manager._notify_lora_slots_updated

    @functools.wraps(init_state)
    def init_unpinned(self: LoRAManager, *args: Any, **kwargs: Any) -> None:
        with _NothingPinned():
            init_state(self, *args, **kwargs)
        if self.lm_head_module is not None:
            # Of a tied lm_head SGLang has made another one by now.
            use_native_rows(self.lm_head_module.base_layer, PackedLMHeadMethod)

    @functools.wraps(notify)
    def notify_backend(self: LoRAManager, slot_ids: set[int]) -> None:
        self.lora_backend.forget(slot_ids)
        notify(self, slot_ids)

    manager.init_state, manager._notify_lora_slots_updated = init_unpinned, notify_backend
