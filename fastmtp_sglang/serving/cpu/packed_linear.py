"""Linear layers whose weights are packed once, at load time, for the native product.

Verification multiplies K + 1 rows by weights that plain decoding multiplies by one; the bytes read
are the same, and few rows cost little more than one (linear layers of SmolLM2-135M's size on two
Zen 3 cores, milliseconds for 1 / 4 / 8 / 16 / 32 rows: float32 14 / 16 / 20 / 34 / 52, bfloat16
10 / 10 / 17 / 23 / 44). A token's logits do not depend on who shares its batch.

The row-major copy of a linear layer is freed; an embedding that doubles as head keeps its rows,
since looking tokens up needs them.
"""

import weakref

import torch
from sglang.srt.layers.linear import LinearBase
from sglang.srt.layers.quantization.unquant import (
    UnquantizedEmbeddingMethod,
    UnquantizedLinearMethod,
)
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from torch.utils._python_dispatch import _disable_current_modes

from fastmtp_sglang.serving.cpu import replay
from fastmtp_sglang.serving.cpu.fused import DTYPES, forget_copies
from fastmtp_sglang.serving.cpu.native.engine import engine
from fastmtp_sglang.serving.cpu.native.packing import Packed

# Multi-head latent attention reads this weight itself, in two halves.
_READ_ELSEWHERE = ("kv_b_proj",)


def _packable(weight: torch.Tensor) -> bool:
    return weight.dtype in DTYPES


class PackedLinearMethod(UnquantizedLinearMethod):
    """The method of a linear layer whose weight exists only in panels."""

    def __init__(self, layer: LinearBase) -> None:
        self.packed: Packed | None = None
        self._bias: torch.Tensor | None = None
        self.pack(layer)

    def pack(self, layer: LinearBase) -> None:
        """Move `layer.weight` into panels and free its rows."""
        self.packed, self._bias = Packed.of(layer.weight.data), None
        layer.weight.data = torch.empty(0, dtype=layer.weight.dtype)

    def unpack(self, layer: LinearBase) -> None:
        """Give `layer.weight` its rows back, exactly as they were, for a loader to fill."""
        assert self.packed is not None
        layer.weight.data = self.packed.rows()
        self.packed = None

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """SGLang's hook for the product of a linear layer."""
        if bias is not None and self._bias is None:
            # Made while a pass is recorded, it is no part of that pass.
            with _disable_current_modes():
                self._bias = bias.detach().float().contiguous()
        assert self.packed is not None
        return engine().product(x, self.packed, None if bias is None else self._bias)


class PackedLMHeadMethod(UnquantizedEmbeddingMethod):
    """The method of an lm_head: rows for look-ups, panels for logits.

    A draft shares its target's lm_head by taking the weight tensor over, so packed copies are found
    by the memory that they were made from: target and draft share one.
    """

    _packed_by_address: weakref.WeakValueDictionary[int, Packed] = weakref.WeakValueDictionary()

    def __init__(self) -> None:
        self.head: Packed | None = None

    def forget(self, layer: torch.nn.Module) -> None:
        """Drop the packed copy, for every lm_head that shares it, after the rows changed."""
        self._packed_by_address.pop(layer.weight.data_ptr(), None)
        self.head = None

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """SGLang's hook for the logits of an lm_head."""
        address = layer.weight.data_ptr()
        current = self._packed_by_address.get(address)
        if current is None:
            current = self._packed_by_address[address] = Packed.of(layer.weight.data)
        self.head = current  # keeps it alive
        return engine().product(x, current, None if bias is None else bias.float())

    def embedding(self, layer: torch.nn.Module, input_: torch.Tensor) -> torch.Tensor:
        """SGLang's hook for looking tokens up."""
        return look_up(layer, input_)


class NativeEmbeddingMethod(UnquantizedEmbeddingMethod):
    """The method of an embedding that is no head."""

    def embedding(self, layer: torch.nn.Module, input_: torch.Tensor) -> torch.Tensor:
        """SGLang's hook for looking tokens up."""
        return look_up(layer, input_)


def look_up(layer: torch.nn.Module, ids: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """The embeddings of token ids of any shape and integer dtype, times a factor."""
    flat = ids.flatten().to(torch.int64)
    rows = layer.weight.data
    return engine().embed(flat, rows, factor).view(*ids.shape, rows.shape[1])


def pack_model(model: torch.nn.Module) -> None:
    """Repack every unquantized linear layer and lm_head of `model`, in place.

    Weight updates keep working: `model.load_weights` unpacks, loads and packs again.
    """
    linears = [
        module
        for name, module in model.named_modules()
        if isinstance(module, LinearBase)
        and type(module.quant_method) is UnquantizedLinearMethod
        and _packable(module.weight)
        and name.rsplit(".", 1)[-1] not in _READ_ELSEWHERE
    ]
    for linear in linears:
        linear.quant_method = PackedLinearMethod(linear)
    head = getattr(model, "lm_head", None)
    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding):
            use_native_rows(module, PackedLMHeadMethod if module is head else NativeEmbeddingMethod)
    if isinstance(head, torch.nn.Embedding) and _packable(head.weight):
        # SGLang's Gemma 3 scores with torch's own embedding; its rows stay, for looking tokens up.
        head.quant_method = PackedLMHeadMethod()
    if linears:
        _repack_on_load(model, linears)


def use_native_rows(
    module: VocabParallelEmbedding, method: type[PackedLMHeadMethod | NativeEmbeddingMethod]
) -> None:
    """Give an embedding or lm_head a native method, unless it is quantized or has one."""
    if type(module.quant_method) is UnquantizedEmbeddingMethod and _packable(module.weight):
        module.quant_method = method()


def _repack_on_load(model: torch.nn.Module, linears: list[LinearBase]) -> None:
    load_weights = model.load_weights

    def load_and_repack(*args, **kwargs):
        for linear in linears:
            linear.quant_method.unpack(linear)
        try:
            return load_weights(*args, **kwargs)
        finally:
            for linear in linears:
                linear.quant_method.pack(linear)
            for module in model.modules():
                method = getattr(module, "quant_method", None)
                if isinstance(method, PackedLMHeadMethod):
                    method.forget(module)
            forget_copies(model)
            replay.forget(model)

    model.load_weights = load_and_repack
