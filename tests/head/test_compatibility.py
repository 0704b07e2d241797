"""Every way in which a head may not fit its target, by its message.

Alone: pytest tests/head/test_compatibility.py
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny_models as models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, PreTrainedConfig

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head import compatibility
from fastmtp_sglang.head.compatibility import (
    NATIVE_ARCHITECTURES,
    check_compatible,
    has_native_head,
    mimo_name,
    tensor_shapes,
)
from fastmtp_sglang.head.config import FastMTPConfig


@dataclass(frozen=True)
class Checkpoints:
    """A target, a head of it, and both in one directory of MiMo's layout."""

    target: Path
    head: Path
    mimo: Path


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Checkpoints:
    root = tmp_path_factory.mktemp("checkpoints")
    target = models.target(root / "target", "qwen2")
    mimo = models.as_mimo(target, models.random_head(target, root / "head"), root / "mimo")
    FastMTPConfig.register_for_auto_class_loading()
    return Checkpoints(target, root / "head", mimo)


@pytest.fixture
def changed(tmp_path) -> Callable[..., Path]:
    """Copies a checkpoint with other fields in its config.json and other tensors."""

    def copy(
        source: Path,
        tensors: Callable[[dict[str, torch.Tensor]], object] | None = None,
        **fields: Any,
    ) -> Path:
        out = tmp_path / "changed"
        shutil.copytree(source, out)
        config = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(config | fields))
        if tensors is not None:
            content = load_file(out / "model.safetensors")
            tensors(content)
            save_file(content, out / "model.safetensors")
        return out

    return copy


def refusal(target: Path, draft: Path | None) -> str:
    with pytest.raises(FastMTPError) as caught:
        check_compatible(target, draft)
    return str(caught.value)


# --- what fits ---


@pytest.mark.heavy
def test_a_head_fits_its_target(checkpoints):
    check_compatible(checkpoints.target, checkpoints.head)


def test_a_native_head_fits(checkpoints):
    check_compatible(checkpoints.mimo, None)
    check_compatible(checkpoints.mimo, checkpoints.mimo)


def test_a_head_in_a_checkpoint_of_its_own_fits(checkpoints):
    """The published FastMTP checkpoint: MiMo's layout as the draft of another directory."""
    check_compatible(checkpoints.target, checkpoints.mimo)


def test_a_head_without_a_fingerprint_passes(checkpoints, changed):
    check_compatible(checkpoints.target, changed(checkpoints.head, tokenizer_fingerprint=None))


def test_no_weights_are_read(checkpoints, changed):
    """The checks run in the main process: configurations and the headers of files only."""
    head = changed(checkpoints.head)
    file = head / "model.safetensors"
    header = file.read_bytes()
    file.write_bytes(header[: 8 + int.from_bytes(header[:8], "little")])
    check_compatible(checkpoints.target, head)


# --- what does not ---


@pytest.mark.parametrize(
    ("field", "label", "value", "needed"),
    [("hidden_size", "hidden size", 128, 64), ("vocab_size", "vocabulary size", 1000, 49152)],
)
def test_other_dimensions(checkpoints, changed, field, label, value, needed):
    head = changed(checkpoints.head, **{field: value})
    message = refusal(checkpoints.target, head)
    assert message == (
        f"--speculative-draft-model-path {head} has {label} {value}, its target "
        f"{checkpoints.target} (Qwen2ForCausalLM (hidden size 64, vocabulary 49152)) has {needed}: "
        "the head belongs to another target. Use a head that was made for this one."
    )


@pytest.mark.parametrize("other", ["LlavaQwenForCausalLM", "Gemma3ForConditionalGeneration"])
def test_a_target_of_another_layout(checkpoints, changed, other):
    """Of an image the head would see nothing: its embeddings are looked up by token id."""
    target = changed(checkpoints.target)
    config = PreTrainedConfig(hidden_size=64, vocab_size=49152)
    config.architectures = [other]
    with pytest.raises(FastMTPError) as caught:
        compatibility.check(
            str(target), config, "head", AutoConfig.from_pretrained(checkpoints.head)
        )
    assert "head is a FastMTP head, which drafts for LlamaForCausalLM" in str(caught.value)
    assert f"{target} is {other}" in str(caught.value)
    assert "no images" in str(caught.value)


def test_another_tokenizer(checkpoints, changed):
    head = changed(checkpoints.head, tokenizer_fingerprint="of-another")
    actual = json.loads((checkpoints.head / "config.json").read_text())["tokenizer_fingerprint"]
    message = refusal(checkpoints.target, head)
    assert f"{head} was made for a tokenizer with fingerprint of-another" in message
    assert f"the target {checkpoints.target} has {actual}" in message
    assert "Use a head that was made for this target." in message


def test_missing_tensors(checkpoints, changed):
    def lose(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["input_proj.weight"], tensors["block.mlp.up_proj.weight"]

    head = changed(checkpoints.head, lose)
    message = refusal(checkpoints.target, head)
    assert message.startswith(
        f"--speculative-draft-model-path {head} lacks the head's tensors "
        "block.mlp.up_proj.weight, input_proj.weight. "
    )
    assert "download or export it again" in message


def test_a_checkpoint_exported_without_its_mtp_layer(checkpoints, changed):
    """The first three names and a count, not fifteen."""

    def lose(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "mtp" in name]:
            del tensors[name]

    message = refusal(changed(checkpoints.mimo, lose), None)
    assert "model.mtp_layers.0.final_layernorm.weight" in message
    assert "and 13 more" in message
    assert message.count("model.mtp_layers.0.") == 3


@pytest.mark.parametrize("layout", ["head", "mimo"])
def test_other_shapes(checkpoints, changed, layout):
    name = {"head": "input_proj.weight", "mimo": "model.mtp_layers.0.input_proj.weight"}[layout]

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name][:, :64].contiguous()

    directory = changed(getattr(checkpoints, layout), narrow)
    message = refusal(checkpoints.target, directory)
    assert f"tensor {name} has shape (64, 64), its config.json implies (64, 128)" in message
    assert "do not belong together" in message


def test_a_directory_without_weights(checkpoints, changed):
    head = changed(checkpoints.head)
    (head / "model.safetensors").rename(head / "pytorch_model.bin")
    message = refusal(checkpoints.target, head)
    assert f"{head} holds no .safetensors file. Point it at the directory" in message


def test_a_model_that_is_no_mtp_head(checkpoints):
    message = refusal(checkpoints.target, checkpoints.target)
    assert f"{checkpoints.target} holds Qwen2ForCausalLM, which is no MTP head" in message
    assert "expected FastMTPHead" in message
    assert "--speculative-algorithm STANDALONE" in message


def test_a_target_without_a_head(checkpoints):
    message = refusal(checkpoints.target, None)
    assert f"{checkpoints.target} (Qwen2ForCausalLM) has no MTP layer of its own" in message
    assert "fastmtp head init" in message


# --- architectures ---


def config(architecture: str, **fields: Any) -> PreTrainedConfig:
    """What the checks read of a target that transformers may not know."""
    result = PreTrainedConfig(architectures=[architecture], hidden_size=8, vocab_size=9)
    for name, value in fields.items():
        setattr(result, name, value)
    return result


@pytest.mark.parametrize("architecture", sorted(compatibility._REFUSED))
@pytest.mark.parametrize(
    "look",
    [
        has_native_head,
        lambda draft: compatibility.check("target", config("LlamaForCausalLM"), "x", draft),
    ],
    ids=["target", "draft"],
)
def test_an_architecture_that_cannot_work(architecture, look):
    with pytest.raises(FastMTPError) as caught:
        look(config(architecture))
    assert str(caught.value).startswith(
        f"{architecture} does not work with --speculative-algorithm fastmtp: it "
        f"{compatibility._REFUSED[architecture]}. "
    )
    assert str(caught.value).endswith("Use SGLang's own algorithm for this model.")


def test_no_architecture_is_both_native_and_refused():
    assert not NATIVE_ARCHITECTURES & compatibility._REFUSED.keys()


@pytest.mark.parametrize("architecture", sorted(NATIVE_ARCHITECTURES))
def test_native_architectures(architecture):
    assert has_native_head(config(architecture))
    assert has_native_head(config(architecture, num_nextn_predict_layers=1))
    assert not has_native_head(config(architecture, num_nextn_predict_layers=0))
    # Other architectures' tensors are SGLang's own loader's to judge; the dimensions are ours.
    compatibility.check("target", config("LlamaForCausalLM"), "hub/id", config(architecture))
    with pytest.raises(FastMTPError, match="has hidden size 16"):
        compatibility.check(
            "target", config("LlamaForCausalLM"), "hub/id", config(architecture, hidden_size=16)
        )


def test_the_native_architectures_are_those_that_sglang_turns_into_drafts():
    """The names in ModelConfig._config_draft_model, but for those that are refused."""
    import ast

    import sglang

    path = Path(sglang.__file__).parent / "srt/configs/model_config.py"
    (method,) = (
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name == "_config_draft_model"
    )
    named = {
        node.value
        for node in ast.walk(method)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.endswith(("ForCausalLM", "ForConditionalGeneration"))
    }
    assert named >= NATIVE_ARCHITECTURES
    assert "LlamaForCausalLM" not in NATIVE_ARCHITECTURES


def test_the_text_part_of_a_multimodal_target_counts():
    text = PreTrainedConfig(hidden_size=8, vocab_size=9)
    text.num_nextn_predict_layers = 0
    target = config("Qwen3_5ForConditionalGeneration", text_config=text, hidden_size=99)
    assert not has_native_head(target)
    text.num_nextn_predict_layers = 1
    assert has_native_head(target)
    compatibility.check("target", config("LlamaForCausalLM"), "hub/id", target)


def test_an_ordinary_target_has_none():
    assert not has_native_head(config("LlamaForCausalLM"))


# --- names and headers ---


def test_mimo_names(checkpoints):
    """MiMo's own: the block's parts lie beside the norms, without `block.`"""
    assert mimo_name("input_proj.weight") == "model.mtp_layers.0.input_proj.weight"
    assert mimo_name("block.mlp.up_proj.weight") == "model.mtp_layers.0.mlp.up_proj.weight"
    written = {name for name in load_file(checkpoints.mimo / "model.safetensors") if "mtp" in name}
    head = load_file(checkpoints.head / "model.safetensors")
    assert written == {mimo_name(name) for name in head}


def test_mimo_names_are_those_that_sglang_loads(checkpoints):
    """SGLang's loader renames them to the parameters of its own MiMo draft model."""
    import ast

    import sglang

    source = (Path(sglang.__file__).parent / "srt/models/mimo_mtp.py").read_text()
    attributes = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    expected = {"token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm"}
    assert expected <= attributes
    names = {mimo_name(name) for name in load_file(checkpoints.head / "model.safetensors")}
    assert {name.split(".")[3] for name in names} == {
        *expected,
        "input_layernorm",
        "mlp",
        "post_attention_layernorm",
        "self_attn",
    }


def test_tensor_shapes_of_several_files(tmp_path):
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(())}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.zeros(4)}, tmp_path / "model-2.safetensors", metadata={"format": "pt"})
    of_file = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": of_file}))
    assert tensor_shapes(tmp_path) == {"a": (2, 3), "b": (), "c": (4,)}


def test_shapes_follow_from_a_configuration_alone(checkpoints):
    draft = AutoConfig.from_pretrained(checkpoints.head)
    expected = compatibility._expected_shapes("FastMTPHead", draft)
    assert expected == tensor_shapes(checkpoints.head)
    assert compatibility._expected_shapes("Glm4MoeForCausalLM", draft) is None
