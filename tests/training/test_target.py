"""The frozen target: its two tensors, its hidden states in any batch, and what identifies it.

Alone: pytest tests/training/test_target.py
"""

import json
import re
import shutil

import pytest
import tiny_models as models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.training import target as module
from fastmtp_sglang.training.target import (
    FrozenTarget,
    checkpoint_files,
    load_tensors,
    target_config,
    target_digest,
)

SEED = 20250918
VOCABULARY, WIDTH = 50, 16
FILE = "model.safetensors"


def checkpoint(folder, *, tied=False):
    """A Llama of two layers and 50 tokens, without a tokenizer."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("target") / "untied")


@pytest.fixture
def copy(untied, tmp_path):
    return shutil.copytree(untied, tmp_path / "copy")


def documents(*lengths):
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in lengths]


def test_embedding_and_output_layer_are_the_files(untied):
    target = FrozenTarget(untied, dtype=torch.float64)
    tensors = load_file(untied / FILE)
    ids = torch.tensor([[3, 0], [49, 3]])
    assert torch.equal(target.embed(ids), tensors["model.embed_tokens.weight"].double()[ids])
    assert torch.equal(target.output_weight, tensors["lm_head.weight"].double())
    assert FrozenTarget(untied).dtype == torch.float32


def test_a_tied_output_layer_is_the_embedding(tmp_path):
    target = FrozenTarget(checkpoint(tmp_path / "tied", tied=True))
    assert target.output_weight.data_ptr() == target._embedding.data_ptr()


@pytest.mark.parametrize("budget", [1, 12, 4096], ids=["one at a time", "some", "all at once"])
def test_hidden_states_do_not_depend_on_what_is_beside_a_document(untied, monkeypatch, budget):
    """Packed in any order and any group, each is what the model says of it alone."""
    monkeypatch.setattr(module, "_TOKENS_PER_FORWARD", budget)
    target = FrozenTarget(untied, dtype=torch.float64)
    texts = documents(3, 9, 1, 5, 0, 9, 2)
    found = target.packed_hidden_states(torch.cat(texts), [len(text) for text in texts])
    for text, states in zip(texts, found.split([len(text) for text in texts]), strict=True):
        if len(text):
            alone = target.model.model(text.unsqueeze(0)).last_hidden_state[0]
            torch.testing.assert_close(states, alone)
        assert states.shape == (len(text), WIDTH)
    # After the final norm: the output layer turns them into logits.
    logits = target.model(texts[1].unsqueeze(0)).logits[0]
    torch.testing.assert_close(found[3:12] @ target.output_weight.T, logits)


def test_no_more_tokens_than_the_budget_run_at_once(untied, monkeypatch):
    """Padding counts; a document that is longer than the budget runs alone."""
    monkeypatch.setattr(module, "_TOKENS_PER_FORWARD", 12)
    target = FrozenTarget(untied)
    shapes = []
    target.model.model.register_forward_pre_hook(
        lambda _, inputs: shapes.append(tuple(inputs[0].shape))
    )
    lengths = [2, 20, 6, 5, 1, 3]
    target.packed_hidden_states(torch.cat(documents(*lengths)), lengths)
    assert shapes == [(1, 20), (2, 6), (3, 3)]


def test_the_model_is_loaded_when_it_runs_and_can_go(untied, monkeypatch):
    loaded = []
    original = AutoModelForCausalLM.from_pretrained

    def load(*arguments, **options):
        loaded.append(arguments)
        return original(*arguments, **options)

    monkeypatch.setattr(module.AutoModelForCausalLM, "from_pretrained", load)
    target = FrozenTarget(untied)
    target.unload()  # of what was never loaded
    assert loaded == []
    model = target.model
    assert target.model is model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    target.unload()
    assert target.model is not model
    assert len(loaded) == 2


def test_the_digest_changes_with_weights_and_configuration_and_nothing_else(copy):
    before = target_digest(copy)
    assert before == FrozenTarget(copy).digest
    (copy / "README.md").write_text("new")
    (copy / FILE).touch()
    assert target_digest(copy) == before

    tensors = load_file(copy / FILE)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(tensors | {name: tensors[name] + 1e-3}, copy / FILE, {"format": "pt"})
    changed = target_digest(copy)
    assert changed != before
    save_file(tensors, copy / FILE, {"format": "pt"})
    assert target_digest(copy) == before

    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 5e5}))
    assert target_digest(copy) not in {before, changed}


def test_two_tensors_that_change_places_are_another_target(copy):
    tensors = load_file(copy / FILE)
    before = target_digest(copy)
    first, second = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    swapped = {first: tensors[second], second: tensors[first]}
    save_file(tensors | swapped, copy / FILE, {"format": "pt"})
    assert target_digest(copy) != before
    # And so is one whose tensors only have other names.
    renamed = {f"{name}s": tensor for name, tensor in tensors.items()}
    save_file(renamed, copy / FILE, {"format": "pt"})
    assert target_digest(copy) != before


def test_tensors_are_read_by_name(untied):
    found = load_tensors(untied, ["model.norm.weight", "nothing"], optional={"nothing"})
    assert list(found) == ["model.norm.weight"]
    with pytest.raises(FastMTPError, match=r"untied has no tensor a, b, c\.$"):
        load_tensors(untied, ["a", "b", "c", "d", "model.norm.weight"])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", r"cannot be read \(Expecting"),
        ("[]", r"cannot be read \(.* holds a JSON list"),
        ('{"model_type": "nonsense"}', r"cannot be read \(.*does not recognize"),
        ('{"model_type": "llama", "hidden_size": 7}', r"cannot be read \("),
        (None, r"holds no config\.json"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_one_line(copy, content, reason):
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_text(content)
    with pytest.raises(FastMTPError, match=rf"{re.escape(str(copy))}.*{reason}.*give a") as error:
        target_config(copy)
    assert "\n" not in str(error.value)
    if content is None:
        with pytest.raises(FastMTPError, match=reason):
            target_digest(copy)


def test_a_directory_without_weights(copy):
    (copy / FILE).unlink()
    for read in (checkpoint_files, target_digest, FrozenTarget):
        with pytest.raises(FastMTPError, match=r"copy holds no \.safetensors file: give"):
            read(copy)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_embeddings_are_the_models(tmp_path, family, dtype):
    """To the bit, scaled or not: of Gemma's factor too only what the dtype holds is used."""
    target = FrozenTarget(models.target(tmp_path / "target", family), dtype=dtype)
    ids = torch.arange(0, 49152, 97)
    expected = target.model.get_input_embeddings()(ids)
    assert expected.dtype == dtype
    assert torch.equal(target.embed(ids), expected)
