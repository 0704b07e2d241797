"""What a list size costs and gains: bytes read per verified step against expected accepted tokens.

Decoding at small batch is bound by the bytes of weights that it reads: the target once, and for
each of K draft steps the MTP layer and the rows of the head that are scored. Fewer rows are read
faster, and tokens outside the list end the accepted run. This prediction ranks sizes; it is no
benchmark.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Share of verified steps in which at least 1, 2 and 3 drafts are accepted with the full vocabulary:
# FastMTP (arXiv 2509.18362), figures of the 7B model; their sum plus 1 is its acceptance length
# 2.73.
PAPER_ACCEPTANCE = (0.81, 0.56, 0.36)

_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}


@dataclass(frozen=True)
class DraftCost:
    """Bytes of weights read, from the shapes in the target's configuration.

    Attributes:
        target: One forward pass of the target, embedding left out, experts at most once per token.
        layer: One pass of the MTP head's own layer.
        row: One row of the shared head.
        vocab_size: Rows of the full head.
        acceptance: Share of steps with at least k accepted drafts, full vocabulary, k = 1..K.
    """

    target: int
    layer: int
    row: int
    vocab_size: int
    acceptance: tuple[float, ...] = PAPER_ACCEPTANCE

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "DraftCost | None":
        """Derive the costs from a `config.json`; None if it lacks a transformer's shapes."""
        wanted = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        experts = config.get("num_experts_per_tok")
        width_key = "moe_intermediate_size" if experts else "intermediate_size"
        if any(not config.get(key) for key in (*wanted, width_key)):
            return None
        hidden, layers, heads, vocab_size = (config[key] for key in wanted)
        head_dim = config.get("head_dim") or hidden // heads
        kv_heads = config.get("num_key_value_heads") or heads
        active = experts + (config.get("n_shared_experts") or 0) if experts else 1
        layer = 2 * hidden * head_dim * (heads + kv_heads) + 3 * hidden * config[width_key] * active
        # Half precision where the configuration does not say: only the ratio of sizes matters.
        size = _BYTES.get(str(config.get("torch_dtype") or config.get("dtype")), 2)
        return cls(
            target=size * (layers * layer + vocab_size * hidden),
            # The projection of (hidden, embedding) comes before the layer.
            layer=size * (layer + 2 * hidden * hidden),
            row=size * hidden,
            vocab_size=vocab_size,
        )

    def acceptance_length(self, coverage: float) -> float:
        """Return the expected tokens per step when a share `coverage` of tokens is in the list.

        A draft whose right token is outside the list is rejected and ends the run.
        """
        return 1 + sum(
            share * coverage**step for step, share in enumerate(self.acceptance, start=1)
        )

    def speedup(self, size: int, coverage: float) -> float:
        """Return the predicted tokens/s of a list over those of the full vocabulary."""
        return self._rate(size, coverage) / self._rate(self.vocab_size, 1.0)

    def _rate(self, rows: int, coverage: float) -> float:
        steps = len(self.acceptance)
        return self.acceptance_length(coverage) / (
            self.target + steps * (self.layer + rows * self.row)
        )
