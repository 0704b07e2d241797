"""The MTP head in plain torch: what is trained, and what the serving model must equal.

One head with shared weights drafts any number of steps (FastMTP, arXiv 2509.18362, section 3.1).
For the token at position t + 1 and the hidden state at position t,

    x_t = input_proj([hidden_layernorm(h_t), token_layernorm(embed(token_{t+1}))])
    h'_t = final_layernorm(block(x)_t)            logits for token_{t+2} = lm_head(h'_t)

and the next step takes h'_t in the place of h_t. This is the layer of MiMo (arXiv 2505.07608): the
hidden state is the one after the target's final norm, the concatenation is (hidden, embedding), and
the embedding is zero at position 0. Embedding and lm_head are the target's and are passed in; the
head never holds them. The norms are the family's too: Gemma's multiply by 1 + weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from fastmtp_sglang.head.config import GEMMA, FastMTPConfig

# Decoder layer, norm and rotary embedding of each family.
_PARTS = {
    "llama": (
        modeling_llama.LlamaDecoderLayer,
        modeling_llama.LlamaRMSNorm,
        modeling_llama.LlamaRotaryEmbedding,
    ),
    "qwen2": (
        modeling_qwen2.Qwen2DecoderLayer,
        modeling_qwen2.Qwen2RMSNorm,
        modeling_qwen2.Qwen2RotaryEmbedding,
    ),
    "qwen3": (
        modeling_qwen3.Qwen3DecoderLayer,
        modeling_qwen3.Qwen3RMSNorm,
        modeling_qwen3.Qwen3RotaryEmbedding,
    ),
    GEMMA: (
        modeling_gemma3.Gemma3DecoderLayer,
        modeling_gemma3.Gemma3RMSNorm,
        modeling_gemma3.Gemma3RotaryEmbedding,
    ),
}


class FastMTPHead(PreTrainedModel):
    """One recursive MTP head, a transformers model (`from_pretrained`, `save_pretrained`).

    Example:
        >>> head = FastMTPHead.from_pretrained("head-directory")
        >>> tokens, _ = head.draft(hidden_states, next_ids, embed_tokens, lm_head, num_steps=3)
    """

    config_class = FastMTPConfig
    base_model_prefix = "head"
    _supports_sdpa = True
    _no_split_modules = ["block"]

    def __init__(self, config: FastMTPConfig) -> None:
        super().__init__(config)
        layer, norm, rotary = _PARTS[config.family]
        block_config = config.block_config()
        block_config._attn_implementation = config._attn_implementation
        self.block_config = block_config
        width, eps = config.hidden_size, config.rms_norm_eps
        self.hidden_layernorm = norm(width, eps=eps)
        self.token_layernorm = norm(width, eps=eps)
        self.input_proj = nn.Linear(2 * width, width, bias=False)
        self.block = layer(block_config, layer_idx=0)
        self.final_layernorm = norm(width, eps=eps)
        self.rotary_emb = rotary(block_config)
        # Gemma's has one base for layers with a window and one for those without.
        self._rotary_options = (
            {"layer_type": block_config.layer_types[0]} if config.family == GEMMA else {}
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, modeling_gemma3.Gemma3RMSNorm):
            # A factor of 1, as the weights of the other norms start from.
            initialization.zeros_(module.weight)
        elif isinstance(module, modeling_gemma3.Gemma3RotaryEmbedding):
            # No checkpoint holds its frequencies, and transformers restores those of others alone.
            computed = modeling_gemma3.Gemma3RotaryEmbedding(module.config)
            for name, buffer in computed.named_buffers():
                initialization.copy_(module.get_buffer(name), buffer)

    def forward(
        self,
        hidden_states: torch.Tensor,
        token_embeddings: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **attention_options: Any,
    ) -> torch.Tensor:
        """Apply the head once.

        Args:
            hidden_states: [B, T, D], after the target's final norm, or this head's own output.
            token_embeddings: [B, T, D], embeddings of the tokens one position further on, scaled
                as the target scales them (`config.embedding_scale`).
            position_ids: int64 [B, T], positions of `hidden_states`.
            attention_mask: [B, past + T] of 0 and 1, or None for no padding.
            past_key_values: cache that is read and extended, or None.
            attention_options: for the attention function of `config._attn_implementation`, as in
                every transformers model.

        Returns:
            [B, T, D]: hidden states for `lm_head` and for the next step.
        """
        token_embeddings = token_embeddings.masked_fill((position_ids == 0).unsqueeze(-1), 0)
        joined = torch.cat(
            (self.hidden_layernorm(hidden_states), self.token_layernorm(token_embeddings)), dim=-1
        )
        states = self.input_proj(joined)
        create_mask = (
            create_causal_mask if self.config.window is None else create_sliding_window_causal_mask
        )
        mask = create_mask(
            config=self.block_config,
            inputs_embeds=states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        states = self.block(
            states,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None,
            position_embeddings=self.rotary_emb(states, position_ids, **self._rotary_options),
            **attention_options,
        )
        return self.final_layernorm(states)

    @torch.no_grad()
    def draft(
        self,
        hidden_states: torch.Tensor,
        next_token_ids: torch.Tensor,
        embed_tokens: nn.Module,
        lm_head: nn.Module,
        num_steps: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draft greedily after a sequence, as serving does: the reference of its draft chain.

        Args:
            hidden_states: [1, T, D], the target's, for positions 0..T-1.
            next_token_ids: int64 [1, T], the tokens at positions 1..T.
            embed_tokens: the target's embedding, which scales by itself.
            lm_head: the target's output layer.
            num_steps: K, at least 1.

        Returns:
            Token ids int64 [K], the drafts for positions T + 1..T + K, and the head's hidden states
            [K, D] that they were read from.
        """
        length = hidden_states.shape[1]
        positions = torch.arange(length, device=hidden_states.device).unsqueeze(0)
        cache = DynamicCache(config=self.block_config)
        states, ids = hidden_states, next_token_ids
        tokens, outputs = [], []
        for step in range(num_steps):
            states = self(states, embed_tokens(ids), positions, past_key_values=cache)[:, -1:]
            ids = lm_head(states).argmax(-1)
            tokens.append(ids[0, 0])
            outputs.append(states[0, 0])
            positions = torch.full_like(positions[:, :1], length + step)
        return torch.stack(tokens), torch.stack(outputs)


FastMTPConfig.register_for_auto_class_loading()
AutoModel.register(FastMTPConfig, FastMTPHead, exist_ok=True)
