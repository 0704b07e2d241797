"""Gemma 3 270M's checkpoint: what its conversion writes, and BOS in every way to the model.

The machine's own cache is used: it is built once, and only where the package is installed and
its terms were accepted.
Alone: pytest tests/models/test_gemma3_270m_convert.py
"""

import json
from pathlib import Path

import pytest
import torch

from fastmtp_sglang.files import cache
from fastmtp_sglang.models.catalog import GEMMA3_270M
from fastmtp_sglang.models.prompting import prompt_ids

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(
        not (cache.directory() / GEMMA3_270M.folder).is_dir(),
        reason="needs `fastmtp serve gemma3-270m --accept-license --dry-run`",
    ),
]
TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def real() -> Path:
    return GEMMA3_270M.checkpoint()


def test_the_configuration_is_one_that_sglang_reads(real):
    config = json.loads((real / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert config["model_type"] == "gemma3_text"
    assert "quantization_config" not in config
    assert config["rms_norm_eps"] == 1e-06
    assert (config["num_hidden_layers"], config["vocab_size"]) == (18, 262144)
    assert config["layer_types"][-1] == "full_attention"
    assert json.loads((real / "generation_config.json").read_text())["eos_token_id"] == 1


def test_terms_come_with_the_weights(real):
    assert "Gemma Terms of Use" in (real / "NOTICE").read_text()
    assert "Gemma Terms of Use" in (real / "GEMMA_TERMS.html").read_text()


def test_a_text_begins_with_bos_once(real):
    """By transformers and by SGLang, with and without one in the text."""
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    ids = tokenizer.encode(TEXT)
    assert ids[0] == tokenizer.bos_token_id == 2
    assert 2 not in ids[1:]
    served = get_tokenizer(str(real))
    assert served.encode(TEXT) == served(TEXT)["input_ids"] == ids
    assert tokenizer.encode(TEXT, add_special_tokens=False) == ids[1:]
    for text in (TEXT, f"<bos>{TEXT}"):
        assert prompt_ids(tokenizer, [{"role": "user", "content": text}]) == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == TEXT


@torch.no_grad()
def test_the_model_reads_what_begins_with_bos(real):
    """Dequantized and tokenized as it should be it knows English; without BOS it knows nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    model = AutoModelForCausalLM.from_pretrained(real, dtype=torch.float32)
    text = "Once upon a time there was a little girl who lived in a small house in the forest."

    def surprise(ids: torch.Tensor) -> float:
        return model(ids, labels=ids).loss.item()

    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    assert surprise(ids) < 3
    assert surprise(ids[:, 1:]) > 6
