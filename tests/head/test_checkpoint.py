"""Making a head: what it starts from, what is refused, and that nothing half-made stays behind.

Alone: pytest tests/head/test_checkpoint.py
"""

import json
import stat
from pathlib import Path

import pytest
import tiny_models as models
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, GPT2Config

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head import compatibility
from fastmtp_sglang.head.checkpoint import init_head, save_head
from fastmtp_sglang.head.config import FastMTPConfig
from fastmtp_sglang.head.module import FastMTPHead

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def targets(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("targets")
    families = ("llama", "qwen2", "qwen3", "gemma3_text")
    return {family: models.target(root / family, family) for family in families}


def last_layer(target: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The weights of a target's last decoder layer and of its final norm, from its file."""
    tensors = load_file(target / "model.safetensors")
    prefix = "model.layers.1."
    layer = {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    return layer, tensors["model.norm.weight"]


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_the_start(targets, tmp_path, family):
    """Last layer, final norm and its inverse, the input halved, nothing of the vocabulary."""
    out = tmp_path / "new" / "head"  # its parent does not exist yet
    init_head(targets[family], out, num_speculative_steps=4)
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    tensors = load_file(out / "model.safetensors")
    layer, norm = last_layer(targets[family])
    block = {
        name.removeprefix("block."): tensors.pop(name)
        for name in list(tensors)
        if name.startswith("block.")
    }
    assert block.keys() == layer.keys()
    assert all(torch.equal(block[name], layer[name]) for name in layer)
    assert torch.equal(tensors.pop("final_layernorm.weight"), norm)
    # The final norm's factor (0.5 to 1.5 here, or Gemma's 1.5 to 2.5) is undone, up to a scale.
    plus = 1 if family == "gemma3_text" else 0
    factor = norm + plus
    torch.testing.assert_close(
        (tensors.pop("hidden_layernorm.weight") + plus) * factor, factor.mean().expand(64)
    )
    assert torch.equal(tensors.pop("token_layernorm.weight") + plus, torch.ones(64))
    half = torch.eye(64) / 2
    assert torch.equal(tensors.pop("input_proj.weight"), torch.cat((half, half), 1))
    assert tensors == {}

    config = json.loads((out / "config.json").read_text())
    assert config["num_speculative_steps"] == 4
    assert config["family"] == family
    assert config["tokenizer_fingerprint"]
    compatibility.check_compatible(targets[family], out)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_round_trip_through_auto_model(targets, tmp_path, family):
    head = models.random_head(targets[family], tmp_path / "head")
    loaded = AutoModel.from_pretrained(tmp_path / "head")
    assert type(loaded) is FastMTPHead
    assert loaded.config.to_diff_dict() == head.config.to_diff_dict()
    expected = head.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    loaded.save_pretrained(tmp_path / "again")
    first, again = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("head", "again")
    )
    assert first == again


def test_mimo_layout_holds_the_same_head(targets, tmp_path):
    """Each tensor under MiMo's name beside the target's own, which stay as they were."""
    head = models.random_head(targets["qwen2"], tmp_path / "head")
    mimo = models.as_mimo(targets["qwen2"], head, tmp_path / "mimo")
    tensors = load_file(mimo / "model.safetensors")
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensors.pop(compatibility.mimo_name(name)), tensor)
    own = load_file(targets["qwen2"] / "model.safetensors")
    assert tensors.keys() == own.keys()
    assert all(torch.equal(tensors[name], own[name]) for name in own)
    compatibility_config = FastMTPConfig.from_target(
        AutoModelForCausalLM.from_pretrained(targets["qwen2"]).config
    )
    rebuilt = FastMTPHead(compatibility_config)
    assert rebuilt.state_dict().keys() == head.state_dict().keys()


def test_the_target_type_is_kept(targets, tmp_path):
    """A head of a bfloat16 target is bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(targets["llama"]).bfloat16()
    half = tmp_path / "half"
    model.save_pretrained(half)
    for file in targets["llama"].glob("token*"):
        (half / file.name).write_bytes(file.read_bytes())
    init_head(half, tmp_path / "head")
    tensors = load_file(tmp_path / "head" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


# --- refusals ---


def test_an_existing_directory_is_refused_and_left_alone(targets, tmp_path):
    out = tmp_path / "head"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(FastMTPError, match=r"--out .*/head exists already\. Choose another"):
        init_head(targets["llama"], out)
    assert [path.name for path in out.iterdir()] == ["mine"]


@pytest.mark.parametrize("steps", [0, -3])
def test_less_than_one_step_is_refused(targets, tmp_path, steps):
    with pytest.raises(FastMTPError, match=f"num_speculative_steps {steps} must be at least 1"):
        init_head(targets["llama"], tmp_path / "head", num_speculative_steps=steps)
    assert list(tmp_path.iterdir()) == []


def test_another_family_is_refused(targets, tmp_path):
    other = tmp_path / "gpt2"
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=100)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(other)
    for file in targets["llama"].glob("token*"):
        (other / file.name).write_bytes(file.read_bytes())
    with pytest.raises(FastMTPError, match="cannot be made for GPT2LMHeadModel"):
        init_head(other, tmp_path / "head")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2"]


# --- all or nothing ---


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_a_failure_while_writing_leaves_nothing(targets, tmp_path, monkeypatch, error):
    written = []

    def fail(self, directory, **kwargs):
        (Path(directory) / "model.safetensors").write_bytes(b"half of it")
        written.append(Path(directory))
        raise error

    monkeypatch.setattr(FastMTPHead, "save_pretrained", fail)
    with pytest.raises(type(error)):
        init_head(targets["llama"], tmp_path / "head")
    (scratch,) = written
    assert scratch.parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_appears_meanwhile_is_not_overwritten(targets, tmp_path):
    """Two processes make the same head: the second one fails, the first one's stays whole."""
    head = models.random_head(targets["llama"], tmp_path / "first")
    contents = (tmp_path / "first" / "model.safetensors").read_bytes()
    with pytest.raises(FastMTPError, match="exists already"):
        save_head(head, tmp_path / "first")
    assert (tmp_path / "first" / "model.safetensors").read_bytes() == contents
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_others_may_read_the_directory(targets, tmp_path):
    """Temporary directories are private; a head is served by another user at times."""
    models.random_head(targets["llama"], tmp_path / "head")
    assert stat.S_IMODE((tmp_path / "head").stat().st_mode) == 0o755


def test_a_target_that_is_not_there(tmp_path):
    with pytest.raises(FastMTPError, match=r"--target .*/none cannot be read: .*directory of a"):
        init_head(tmp_path / "none", tmp_path / "head")
    assert not (tmp_path / "head").exists()
