"""The configuration of a FastMTP head: its target's dimensions, and how many steps it drafts.

A head directory is a transformers checkpoint: `config.json` with this configuration and
`model.safetensors`. The configuration repeats every field of the target's that the decoder block is
built from, so that a head can be rebuilt without the target at hand.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from fastmtp_sglang.errors import FastMTPError

ARCHITECTURE = "FastMTPHead"
GEMMA = "gemma3_text"

# Architecture of the target -> transformers model type whose decoder block the head uses. MiMo's
# block is Qwen2's (its own configuration class is remote code).
FAMILIES = {
    "LlamaForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MiMoForCausalLM": "qwen2",
    # Text alone: the models that also take images are Gemma3ForConditionalGeneration.
    "Gemma3ForCausalLM": GEMMA,
}

# What identifies a checkpoint rather than a block.
_NOT_COPIED = {
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "id2label",
    "label2id",
    "model_type",
    "num_hidden_layers",
    "num_nextn_predict_layers",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
}


class FastMTPConfig(PreTrainedConfig):
    """Configuration of a `FastMTPHead`.

    Besides the fields below it holds the target's own: hidden_size, vocab_size, attention and MLP
    dimensions, rms_norm_eps, rope_parameters and so on. `num_hidden_layers` is 1, the one block.

    Args:
        family: transformers model type of the decoder block, one of the values of `FAMILIES`.
        num_speculative_steps: K that the head was trained for.
        tokenizer_fingerprint: fingerprint of the target's tokenizer, see `vocabulary.fingerprint`.
    """

    model_type = "fastmtp"

    family: str = "llama"
    num_speculative_steps: int = 3
    tokenizer_fingerprint: str | None = None
    num_hidden_layers: int = 1

    @classmethod
    def from_target(
        cls,
        target: PreTrainedConfig,
        *,
        num_speculative_steps: int = 3,
        tokenizer_fingerprint: str | None = None,
    ) -> FastMTPConfig:
        """Derive a head's configuration from its target's.

        Raises:
            FastMTPError: the target's architecture is none of `FAMILIES`, or its tokens see those
                behind them.
        """
        architecture = (target.architectures or ["unknown"])[0]
        family = FAMILIES.get(architecture)
        if family is None:
            takes_images = architecture.endswith("ForConditionalGeneration")
            more = " It takes more than text, of which a head would see nothing." * takes_images
            raise FastMTPError(
                f"A FastMTP head cannot be made for {architecture}: its decoder block is not one "
                f"of {', '.join(FAMILIES)}.{more} Use the model's native MTP layer if it has one."
            )
        if getattr(target, "use_bidirectional_attention", False):
            raise FastMTPError(
                f"A FastMTP head cannot be made for this {architecture}: with "
                "use_bidirectional_attention it embeds texts and writes none."
            )
        fields = {k: v for k, v in target.to_dict().items() if k not in _NOT_COPIED}
        if fields.get("layer_types"):
            # One entry a layer; the head's block is a copy of the last.
            fields["layer_types"] = fields["layer_types"][-1:]
        config = cls(
            **fields,
            family=family,
            num_hidden_layers=1,
            num_speculative_steps=num_speculative_steps,
            tokenizer_fingerprint=tokenizer_fingerprint,
        )
        config.architectures = [ARCHITECTURE]
        return config

    def block_config(self) -> PreTrainedConfig:
        """The family's own configuration for the one decoder block."""
        fields = {k: v for k, v in self.to_dict().items() if k not in _NOT_COPIED}
        for ours in ("family", "num_speculative_steps", "tokenizer_fingerprint"):
            fields.pop(ours)
        return CONFIG_MAPPING[self.family](**fields, num_hidden_layers=1)

    @property
    def window(self) -> int | None:
        """Positions that the block attends to, its own included; None for all before it.

        Only Gemma's: SGLang serves the other families without one, whatever their files say.
        """
        slides = self.family == GEMMA and self.layer_types == ["sliding_attention"]
        return self.sliding_window if slides else None

    @classmethod
    def register_for_auto_class_loading(cls) -> None:
        """Teach `AutoConfig` the model type `fastmtp`; idempotent."""
        AutoConfig.register(cls.model_type, cls, exist_ok=True)


def embedding_scale(config: Any) -> float:
    """What the embedding of a target is multiplied by; `config` is the target's or its head's."""
    family = getattr(config, "family", config.model_type)
    return config.hidden_size**0.5 if family == GEMMA else 1.0


def architecture_of(config: Any) -> str:
    """The architecture that a transformers configuration names, else its model type."""
    return (getattr(config, "architectures", None) or [config.model_type])[0]


def describe(config: Any) -> str:
    """Architecture and dimensions in a few words, for messages."""
    dimensions = f"hidden size {config.hidden_size}, vocabulary {config.vocab_size}"
    return f"{architecture_of(config)} ({dimensions})"
