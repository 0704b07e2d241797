"""The configuration of a head: what it takes from its target, and what it gives back.

Alone: pytest tests/head/test_config.py
"""

import json

import pytest
from transformers import (
    AutoConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.config import ARCHITECTURE, FastMTPConfig, describe, embedding_scale

FAMILIES = {
    "llama": (LlamaConfig, "LlamaForCausalLM"),
    "qwen2": (Qwen2Config, "Qwen2ForCausalLM"),
    "qwen3": (Qwen3Config, "Qwen3ForCausalLM"),
    "gemma3_text": (Gemma3TextConfig, "Gemma3ForCausalLM"),
}


_ROTARY = {
    "llama": {"rope_type": "default", "rope_theta": 12345.0},
    "gemma3_text": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 123.0},
        "full_attention": {"rope_type": "default", "rope_theta": 12345.0},
    },
}


def target(family: str = "llama", **fields):
    config_class, architecture = FAMILIES[family]
    config = config_class(
        **{
            "vocab_size": 1000,
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rms_norm_eps": 3e-7,
            "max_position_embeddings": 777,
            "rope_parameters": _ROTARY.get(family, _ROTARY["llama"]),
            **fields,
        }
    )
    config.architectures = [architecture]
    return config


@pytest.mark.parametrize("family", FAMILIES)
def test_everything_the_block_is_built_from_is_repeated(family):
    source = target(family)
    config = FastMTPConfig.from_target(source, num_speculative_steps=5, tokenizer_fingerprint="f")
    assert (config.family, config.num_speculative_steps, config.tokenizer_fingerprint) == (
        family,
        5,
        "f",
    )
    assert config.architectures == [ARCHITECTURE]
    assert config.num_hidden_layers == 1
    block = config.block_config()
    assert type(block) is FAMILIES[family][0]
    given = source.to_dict()
    for field, value in block.to_dict().items():
        if field in ("num_hidden_layers", "layer_types", "architectures"):
            continue
        assert value == given[field], field
    assert block.num_hidden_layers == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_through_a_file(tmp_path, family):
    FastMTPConfig.register_for_auto_class_loading()
    config = FastMTPConfig.from_target(
        target(family), num_speculative_steps=2, tokenizer_fingerprint="sha256:1"
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is FastMTPConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.block_config().to_dict() == config.block_config().to_dict()
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "fastmtp"
    assert written["architectures"] == [ARCHITECTURE]


def test_facts_about_the_target_checkpoint_stay_behind():
    source = target(num_nextn_predict_layers=1, quantization_config={"quant_method": "awq"})
    fields = FastMTPConfig.from_target(source).to_dict()
    assert not {"num_nextn_predict_layers", "quantization_config", "auto_map"} & fields.keys()


def test_one_layer_type_is_left():
    """Of a target whose layers differ: the head is made from the last one."""
    layers = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    source = target(
        "qwen2", num_hidden_layers=4, layer_types=layers, use_sliding_window=True, sliding_window=8
    )
    config = FastMTPConfig.from_target(source)
    assert config.layer_types == ["sliding_attention"]
    assert config.block_config().layer_types == ["sliding_attention"]


@pytest.mark.parametrize(("family", "window"), [("qwen2", None), ("gemma3_text", 8)])
def test_the_window_is_that_of_the_last_layer(family, window):
    """SGLang serves Qwen2 without one."""
    layers = ["full_attention", "sliding_attention"]
    fields = {"num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": 8}
    source = target(family, layer_types=layers, **fields)
    assert FastMTPConfig.from_target(source).window == window
    source.layer_types = layers[::-1]
    assert FastMTPConfig.from_target(source).window is None
    assert FastMTPConfig.from_target(target()).window is None


def test_the_scale_of_embeddings():
    """Of a target and of its head: Gemma's alone scales them."""
    for family in FAMILIES:
        source = target(family)
        expected = 96**0.5 if family == "gemma3_text" else 1.0
        assert embedding_scale(source) == expected
        assert embedding_scale(FastMTPConfig.from_target(source)) == expected


def test_a_gemma_that_embeds_is_refused():
    source = target("gemma3_text", use_bidirectional_attention=True)
    with pytest.raises(FastMTPError, match="use_bidirectional_attention it embeds texts"):
        FastMTPConfig.from_target(source)


def test_a_model_of_images_is_refused():
    source = Gemma3Config()
    source.architectures = ["Gemma3ForConditionalGeneration"]
    with pytest.raises(
        FastMTPError, match=r"made for Gemma3ForConditionalGeneration.*takes more than text"
    ):
        FastMTPConfig.from_target(source)


def test_mimo_is_qwen2():
    source = target("qwen2")
    source.architectures = ["MiMoForCausalLM"]
    config = FastMTPConfig.from_target(source)
    assert config.family == "qwen2"
    assert type(config.block_config()) is Qwen2Config


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], [], None])
def test_other_families_are_refused(architectures):
    source = GPT2Config()
    source.architectures = architectures
    named = (architectures or ["unknown"])[0]
    with pytest.raises(FastMTPError, match=f"cannot be made for {named}.*LlamaForCausalLM"):
        FastMTPConfig.from_target(source)


def test_registering_twice_is_fine():
    FastMTPConfig.register_for_auto_class_loading()
    FastMTPConfig.register_for_auto_class_loading()
    assert type(AutoConfig.for_model("fastmtp")) is FastMTPConfig


def test_a_description_for_messages():
    assert describe(target()) == "LlamaForCausalLM (hidden size 96, vocabulary 1000)"
    nameless = target()
    nameless.architectures = None
    assert describe(nameless) == "llama (hidden size 96, vocabulary 1000)"
