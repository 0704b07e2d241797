"""A tiny target, a random head for it, and documents of random tokens."""

from dataclasses import dataclass
from pathlib import Path

import tiny_models as models
import torch

from fastmtp_sglang.training.loss import LossWeights, OutputLayer
from fastmtp_sglang.training.model import ChainHead
from fastmtp_sglang.training.packing import Document
from fastmtp_sglang.training.target import FrozenTarget

VOCABULARY = 49152


@dataclass(frozen=True)
class Pair:
    """A target and head directory."""

    target: Path
    head: Path

    def frozen(self, dtype: torch.dtype = torch.float64) -> FrozenTarget:
        return FrozenTarget(self.target, dtype=dtype)

    def chain_head(
        self,
        dtype: torch.dtype = torch.float64,
        weights: LossWeights | None = None,
        output: OutputLayer | None = None,
        target: FrozenTarget | None = None,
    ) -> ChainHead:
        target = target or self.frozen(dtype)
        head = ChainHead.from_pretrained(self.head, dtype=dtype)
        head.attach(target, output or OutputLayer(target.output_weight), weights or LossWeights())
        return head


def make_pair(folder: Path, family: str = "llama") -> Pair:
    target = models.target(folder / "target", family)
    models.random_head(target, folder / "head")
    return Pair(target, folder / "head")


def random_documents(
    *lengths: int, seed: int = 0, prompt: int = 0, vocabulary: int = VOCABULARY
) -> list[Document]:
    """Documents whose first `prompt` tokens do not count."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Document(
            torch.randint(0, vocabulary, (length,), generator=generator),
            torch.arange(length) >= prompt,
        )
        for length in lengths
    ]
