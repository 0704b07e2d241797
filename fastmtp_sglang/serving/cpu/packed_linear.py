"""Linear layers whose weights oneDNN has repacked once, at load time.

Verification multiplies K+1 rows by weights that plain decoding multiplies by one; the bytes read
are the same, but torch's product over a row-major weight costs twice as much for 4 rows as for 1.
oneDNN's blocked layout costs 1.3 times as much (all linear layers of SmolLM2-135M on two Zen 3
cores: 22 ms for 1 row and 29 ms for 4, against 31 and 52), and it accumulates each output in the
same order whatever the number of rows from two on, so a token's logits do not depend on who shares
its batch. Decoding without speculation gains too.

bfloat16 is repacked too where the CPU multiplies it (AVX-512, AMX): on two Sapphire Rapids cores a
third of float32's time for 32 rows. There oneDNN sums 33 and more rows in other blocks than
those of few, so products are taken of at most 32 rows: 96 rows then cost 1.9 times as much, well
below float32.

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

# Multi-head latent attention reads this weight itself, in two halves.
_READ_ELSEWHERE = ("kv_b_proj",)
_BFLOAT16_ROWS = 32


def _packable(weight: torch.Tensor) -> bool:
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


def _pack(weight: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)


def packed_product(
    x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Return x @ weight.T + bias.

    Args:
        x: [..., in_features] float32 or bfloat16, as the weight.
        packed: oneDNN layout of a weight [out_features, in_features].
        bias: [out_features] or None.

    Returns:
        [..., out_features]; a row's bits do not depend on the other rows.
    """
    rows = x.numel() // x.shape[-1]
    if rows == 1:
        # With AVX-512, oneDNN sums over 1,024 inputs of a lone row in other blocks than those of
        # two; two rows take no longer than one, since the weight is what is read.
        pair = x.reshape(1, -1).expand(2, -1)
        product = torch.ops.mkldnn._linear_pointwise(pair, packed, bias, "none", [], "")
        return product[:1].view(*x.shape[:-1], -1)
    if x.dtype == torch.bfloat16 and rows > _BFLOAT16_ROWS:
        parts = x.reshape(rows, -1).split(_BFLOAT16_ROWS)
        # The last part may be a lone row.
        product = torch.cat([packed_product(part, packed, bias) for part in parts])
        return product.view(*x.shape[:-1], -1)
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


class PackedLinearMethod(UnquantizedLinearMethod):
    """The method of a linear layer whose weight exists only in oneDNN's layout."""

    def __init__(self, layer: LinearBase) -> None:
        self.packed: torch.Tensor | None = None
        self.pack(layer)

    def pack(self, layer: LinearBase) -> None:
        """Move `layer.weight` into oneDNN's layout and free its rows."""
        self.packed = _pack(layer.weight)
        layer.weight.data = torch.empty(0, dtype=layer.weight.dtype)

    def unpack(self, layer: LinearBase) -> None:
        """Give `layer.weight` its rows back, exactly as they were, for a loader to fill."""
        assert self.packed is not None
        layer.weight.data = self.packed.to_dense()
        self.packed = None

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """SGLang's hook for the product of a linear layer."""
        return packed_product(x, self.packed, bias)


class PackedLMHeadMethod(UnquantizedEmbeddingMethod):
    """The method of an lm_head: rows for look-ups, oneDNN's layout for logits.

    A draft shares its target's lm_head by taking the weight tensor over, so packed copies are found
    by the memory that they were made from: target and draft share one.
    """

    _packed_by_address: "weakref.WeakValueDictionary[int, _PackedHead]" = (
        weakref.WeakValueDictionary()
    )

    def __init__(self) -> None:
        self.head: _PackedHead | None = None

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
            current = _PackedHead(_pack(layer.weight))
            self._packed_by_address[address] = current
        self.head = current  # keeps it alive
        return packed_product(x, current.packed, bias)


class _PackedHead:
    def __init__(self, packed: torch.Tensor) -> None:
        self.packed = packed


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
    if (
        isinstance(head, VocabParallelEmbedding)
        and type(head.quant_method) is UnquantizedEmbeddingMethod
        and _packable(head.weight)
    ):
        head.quant_method = PackedLMHeadMethod()
    if linears:
        _repack_on_load(model, linears)


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
            head = getattr(model, "lm_head", None)
            head_method = getattr(head, "quant_method", None)
            if isinstance(head_method, PackedLMHeadMethod):
                head_method.forget(head)

    model.load_weights = load_and_repack
