"""A checkpoint as GGUF, read back by transformers, which has its own reading of the format.

Alone: pytest tests/benchmarks/test_peers_gguf.py
"""

import gguf
import pytest
import tiny_models as models
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fastmtp_benchmarks.peers_gguf import TYPES, write_gguf
from fastmtp_sglang.errors import FastMTPError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return models.target(tmp_path_factory.mktemp("gguf") / "llama", "llama")


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("float32", 0.0), ("bfloat16", 2**-8), ("Q8_0", 2**-7)]
)
def test_the_weights_are_those_of_the_checkpoint(model, tmp_path, kind, tolerance):
    write_gguf(model, tmp_path / "model.gguf", kind)
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    matrices = {t.tensor_type.name for t in stored.values() if len(t.shape) > 1}
    assert matrices == {TYPES[kind]}
    original = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, config=original.config
    )
    wanted = original.state_dict()
    found = read.state_dict()
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        error = (found[name] - weight).abs().max() / weight.abs().max()
        assert error <= tolerance, name


def test_the_shapes_are_those_of_the_checkpoint(model, tmp_path):
    write_gguf(model, tmp_path / "model.gguf", "float32")
    read = AutoConfig.from_pretrained(tmp_path, gguf_file="model.gguf")
    wanted = AutoConfig.from_pretrained(model)
    for name in (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "rms_norm_eps", "vocab_size"),
        *("max_position_embeddings",),
    ):
        assert getattr(read, name) == pytest.approx(getattr(wanted, name)), name
    assert read.rope_parameters["rope_theta"] == wanted.rope_parameters["rope_theta"]


def test_another_family_is_refused(tmp_path):
    models.target(tmp_path / "qwen2", "qwen2")
    with pytest.raises(FastMTPError, match=r"is a qwen2 .*: only a plain Llama"):
        write_gguf(tmp_path / "qwen2", tmp_path / "model.gguf", "float32")
