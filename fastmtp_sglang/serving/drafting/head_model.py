"""The MTP head as an SGLang draft model: `head.module.FastMTPHead` with SGLang's layers.

SGLang builds it for checkpoints of architecture `FastMTPHead` and drives it in its draft worker:
`forward_batch.spec_info.hidden_states` [tokens, D] holds the hidden state of each row's position,
`input_ids` the token one position further on. The embedding and the lm_head are the target's,
taken over by `set_embed_and_head` and `set_lm_head_from_target`; the head allocates neither.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from sglang.srt.layers.layer_boundary import layer_stack
from sglang.srt.layers.layer_boundary.residual import batch as residual_batch
from sglang.srt.layers.layernorm import Gemma3RMSNorm, RMSNorm
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.logits_processor import LogitsProcessor, LogitsProcessorOutput
from sglang.srt.layers.quantization.base_config import QuantizationConfig
from sglang.srt.layers.utils.common import PPMissingLayer
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_loader.weight_utils import default_weight_loader
from sglang.srt.models.gemma3_causal import get_attention_sliding_window_size
from sglang.srt.models.llama import LlamaDecoderLayer
from sglang.srt.models.qwen2 import Qwen2DecoderLayer
from sglang.srt.models.qwen3 import Qwen3DecoderLayer
from sglang.srt.utils import add_prefix
from torch import nn

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.config import GEMMA, FastMTPConfig, embedding_scale
from fastmtp_sglang.serving.drafting.gemma_block import GemmaBlock

_BLOCKS = {
    "llama": LlamaDecoderLayer,
    "qwen2": Qwen2DecoderLayer,
    "qwen3": Qwen3DecoderLayer,
    GEMMA: GemmaBlock,
}

# How the names of a target's tensors begin, and none of a head's.
_OF_A_TARGET = ("model.", "lm_head.")
_TARGET_EMBEDDING = "model.embed_tokens.weight"

# Checkpoint names of the projections that SGLang keeps fused.
_FUSED = (
    (".q_proj.", ".qkv_proj.", "q"),
    (".k_proj.", ".qkv_proj.", "k"),
    (".v_proj.", ".qkv_proj.", "v"),
    (".gate_proj.", ".gate_up_proj.", 0),
    (".up_proj.", ".gate_up_proj.", 1),
)


def join(hidden: torch.Tensor, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """[rows, 2 * D] of two [rows, D]; the token at position 0 counts for nothing.

    Zeros before or after its norm are the same: an RMSNorm of zeros is zeros.
    """
    return torch.cat((hidden, tokens.masked_fill((positions == 0).unsqueeze(-1), 0)), dim=-1)


class FastMTPHead(nn.Module):
    """One MTP layer, applied once per draft step by the draft worker."""

    # A platform may put its own operator in its place.
    join = staticmethod(join)
    _has_own_embedding = False

    def __init__(
        self,
        config: FastMTPConfig,
        quant_config: QuantizationConfig | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.config = config
        width, eps = config.hidden_size, config.rms_norm_eps
        norm = Gemma3RMSNorm if config.family == GEMMA else RMSNorm
        self.hidden_layernorm = norm(width, eps=eps)
        # norm(scale * x) with eps is norm(x) with eps / scale^2: embeddings are read as they are.
        self.token_layernorm = norm(width, eps=eps / embedding_scale(config) ** 2)
        self.input_proj = ReplicatedLinear(
            2 * width, width, bias=False, prefix=add_prefix("input_proj", prefix)
        )
        with layer_stack():
            self.block = _BLOCKS[config.family](
                config=config.block_config(),
                layer_id=0,
                quant_config=quant_config,
                prefix=add_prefix("block", prefix),
            )
        self.final_layernorm = norm(width, eps=eps)
        self.logits_processor = LogitsProcessor(config)
        # Shapes without memory until the target's tensors take their place.
        with torch.device("meta"):
            self.embed_tokens = VocabParallelEmbedding(config.vocab_size, width)
            self.lm_head = ParallelLMHead(config.vocab_size, width)
        self._is_loaded = False

    @torch.no_grad()
    def forward(
        self, input_ids: torch.Tensor, positions: torch.Tensor, forward_batch: ForwardBatch
    ) -> LogitsProcessorOutput:
        """Hidden states and draft logits of each row; shapes as SGLang's draft workers expect."""
        hidden_states = forward_batch.spec_info.hidden_states
        states = self.states(input_ids, positions, forward_batch, hidden_states)
        return self.logits_processor(input_ids, states, self.lm_head, forward_batch)

    def states(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        forward_batch: ForwardBatch,
        hidden_states: torch.Tensor,
    ) -> torch.Tensor:
        """All of the head but its last layer: [tokens, D] from the hidden states before."""
        tokens = self.token_layernorm(self.embed_tokens(input_ids))
        joined = self.join(self.hidden_layernorm(hidden_states), tokens, positions)
        states, _ = self.input_proj(joined)
        residual_batch.start(forward_batch)
        states = self.block(positions=positions, hidden_states=states, forward_batch=forward_batch)
        return residual_batch.final_norm(states, forward_batch, self.final_layernorm)

    def get_embed_and_head(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of embedding and lm_head; on the meta device before they are shared."""
        return self.embed_tokens.weight, self.lm_head.weight

    def set_embed_and_head(self, embed: torch.Tensor, head: torch.Tensor) -> None:
        """Share the target's weights; called by SGLang's draft worker."""
        self.embed_tokens.weight = embed
        self.lm_head.weight = head

    def take_embedding(
        self, target: nn.Module, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        """Share the target's embedding as a module: which ranks have which rows is its choice.

        On a later pipeline stage, where the target has none, make room for one.
        """
        if any(isinstance(module, PPMissingLayer) for module in target.modules()):
            self.make_own_embedding(dtype, device)
        embedding = getattr(getattr(target, "model", None), "embed_tokens", None)
        if type(embedding) is VocabParallelEmbedding:
            self.embed_tokens = embedding

    def make_own_embedding(self, dtype: torch.dtype, device: torch.device | str) -> None:
        """Room for the target's embedding [V, D], where another pipeline stage holds the target's.

        SGLang fills it from the target's checkpoint, and updates of the target's weights do too.
        """
        if not self._has_own_embedding:
            config = self.config
            with torch.device(device):
                self.embed_tokens = VocabParallelEmbedding(
                    config.vocab_size, config.hidden_size, params_dtype=dtype
                )
            self._has_own_embedding = True

    def set_lm_head_from_target(self, target_lm_head: nn.Module) -> None:
        """Share the module too: a quantized or repacked lm_head is more than its weight.

        Gemma's is torch's embedding, which knows nothing of shards: there the head's own stays, of
        which `set_embed_and_head` has set the weight.
        """
        if isinstance(target_lm_head, VocabParallelEmbedding):
            self.lm_head = target_lm_head

    def get_attention_sliding_window_size(self) -> int | None:
        """What SGLang plans attention by: positions behind a query that its block sees, or None."""
        config = self.config
        return None if config.window is None else get_attention_sliding_window_size(config)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Load a head directory's tensors; later, those of them that an update brings.

        An update of the target's weights passes the target's tensors here too, which leave the head
        as it is, but for an embedding of its own.

        Raises:
            FastMTPError: a tensor is unknown to the head, or one of the head's is not in the files.
        """
        parameters = dict(self.named_parameters())
        expected = set(_checkpoint_names(parameters))
        seen = set()
        for name, tensor in weights:
            if name not in expected:
                if self._is_loaded and name.startswith(_OF_A_TARGET):
                    if self._has_own_embedding and name == _TARGET_EMBEDDING:
                        self.embed_tokens.weight_loader(self.embed_tokens.weight, tensor)
                    continue
                raise FastMTPError(
                    f"The head's checkpoint holds {name}, which a {self.config.family} head does "
                    "not have. Its config.json and model.safetensors do not belong together."
                )
            seen.add(name)
            for part, fused, shard in _FUSED:
                if part in name:
                    parameter = parameters[name.replace(part, fused)]
                    parameter.weight_loader(parameter, tensor, shard)
                    break
            else:
                parameter = parameters[name]
                getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
        if not self._is_loaded and expected - seen:
            raise FastMTPError(
                f"The head's checkpoint lacks {', '.join(sorted(expected - seen))}. "
                "Export it again; a partial head drafts noise."
            )
        self._is_loaded = True


def _checkpoint_names(parameters: Iterable[str]) -> Iterable[str]:
    """The names under which `FastMTPHead.save_pretrained` stores what SGLang calls `parameters`."""
    for name in parameters:
        if name.startswith(("embed_tokens.", "lm_head.")):
            continue
        fused_parts = [(part, fused) for part, fused, _ in _FUSED if fused in name]
        if fused_parts:
            yield from (name.replace(fused, part) for part, fused in fused_parts)
        else:
            yield name
