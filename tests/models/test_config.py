"""A target's configuration is read without code that came with it, and nobody is asked.

Alone: pytest tests/models/test_config.py
"""

import json

import pytest
from transformers import LlamaConfig, Qwen2Config

from fastmtp_sglang.models.config import checkpoint_config

# What the published MiMo-7B says of its code.
REMOTE = {
    "auto_map": {
        "AutoConfig": "configuration_mimo.MiMoConfig",
        "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
    }
}


@pytest.fixture(autouse=True)
def _no_questions(monkeypatch):
    """Nobody may be there to answer whether remote code may run."""
    asked = []

    def answer(question):
        asked.append(question)
        return "n"

    monkeypatch.setattr("builtins.input", answer)
    yield
    assert asked == []


@pytest.fixture
def write(tmp_path):
    def write(content):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def test_mimo_is_the_qwen2_model_that_it_is(write):
    mimo = {"architectures": ["MiMoForCausalLM"], "model_type": "mimo", **REMOTE}
    mimo |= {"hidden_size": 64, "num_nextn_predict_layers": 1}
    config = checkpoint_config(write(mimo))
    assert type(config) is Qwen2Config
    assert config.architectures == ["MiMoForCausalLM"]
    assert (config.hidden_size, config.num_nextn_predict_layers) == (64, 1)
    assert not hasattr(config, "auto_map")


def test_others_are_what_transformers_reads(write):
    config = checkpoint_config(str(write({"model_type": "llama", "hidden_size": 64})))
    assert type(config) is LlamaConfig
    assert config.hidden_size == 64


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"model_type": "other", **REMOTE}, "custom code"),
        ({"model_type": "nonsense"}, "does not recognize"),
        ("{", "Expecting"),
        ("[]", "holds a JSON list, not an object"),
    ],
)
def test_what_cannot_be_read(write, content, reason):
    with pytest.raises(ValueError, match=reason):
        checkpoint_config(write(content))


def test_no_directory(tmp_path):
    with pytest.raises(OSError, match="none"):
        checkpoint_config(tmp_path / "none")
