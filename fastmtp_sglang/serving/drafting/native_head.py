"""MiMo's native MTP layer as a draft model: SGLang's own class, without copies of the vocabulary.

SGLang's `MiMoMTP` allocates an embedding and an lm_head (2.5 GB for MiMo-7B in bfloat16), fills
them from the checkpoint and then drops them for the target's. Here both are shapes without memory
until the target's tensors take their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sglang.srt.models.mimo_mtp import MiMoMTP as StockMiMoMTP
from torch import nn

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.compatibility import MIMO_LAYER

_VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")
# One tensor without which the layer drafts noise; SGLang's loader skips names it does not know.
_SENTINEL = f"{MIMO_LAYER}input_proj.weight"


class MiMoMTP(StockMiMoMTP):
    """SGLang's MiMo draft model that never owns an embedding or lm_head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in (self.model.embed_tokens, self.lm_head):
            module.weight = nn.Parameter(module.weight.to("meta"), requires_grad=False)
        self._is_loaded = False

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load the MTP layer's tensors from a checkpoint of the whole model.

        A later update may lack them; then the layer stays as it is.

        Raises:
            FastMTPError: the first checkpoint has no MTP layer.
        """
        seen: set[str] = set()
        super().load_weights(_without_vocabulary(weights, seen))
        if not self._is_loaded and _SENTINEL not in seen:
            raise FastMTPError(
                f"The checkpoint has no tensor {_SENTINEL}: it was exported without its MTP layer. "
                "Use the original checkpoint, or give a head with --speculative-draft-model-path."
            )
        self._is_loaded = True


def _without_vocabulary(
    weights: Iterable[tuple[str, torch.Tensor]], seen: set[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights:
        seen.add(name)
        if name not in _VOCABULARY:
            yield name, tensor
