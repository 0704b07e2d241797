"""A model that was read from a GGUF file, as the checkpoint that is written of it.

Alone: pytest tests/models/test_gguf_checkpoint.py
"""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from fastmtp_sglang.models.gguf_checkpoint import write_model

SEED = 20250918


def as_read_from_gguf(*, tied: bool):
    """A tiny Llama with what transformers leaves on a model that it read from a GGUF file."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied,
        rms_norm_eps=float(np.float32(1e-5)), eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    model.config.quantization_config = {"quant_method": "gguf"}
    model.config.architectures = None
    model.config._name_or_path = "run-17"
    model.generation_config = GenerationConfig.from_model_config(model.config)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_holds_each_weight_once(tmp_path, tied):
    """transformers loads it, and the result says the same."""
    model = as_read_from_gguf(tied=tied).eval()
    write_model(model, tmp_path, "org/name")
    weights = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in weights) is not tied
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(10).unsqueeze(0)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_what_only_gguf_says_is_left_out(tmp_path):
    write_model(as_read_from_gguf(tied=True), tmp_path, "org/name")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-5
    assert "quantization_config" not in config
    assert "run-17" not in json.dumps(config)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
    assert not generation.get("_from_model_config")  # it stands on its own
