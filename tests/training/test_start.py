"""Where a head starts from: the native layer, an earlier head, scratch; and what is none of them.

Alone: pytest tests/training/test_start.py
"""

import shutil

import pairs
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.compatibility import mimo_name
from fastmtp_sglang.training.start import native_head, starting_head

pytestmark = pytest.mark.heavy


def all_tensors(directory):
    found = {}
    for path in directory.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_native_layer_is_read_by_its_names(mimo, tmp_path):
    head = starting_head("native", mimo, 2, tmp_path)
    tensors = all_tensors(mimo)
    state = head.state_dict()
    assert state["input_proj.weight"].dtype == torch.float32
    for name, tensor in state.items():
        assert torch.equal(tensor, tensors[mimo_name(name)].float())
    assert head.config.num_speculative_steps == 2


def test_the_earlier_head_goes_on_in_float32_with_the_steps_asked_for(pair, tmp_path):
    half = pairs.Pair(pair.target, tmp_path / "half")
    pair.chain_head(torch.bfloat16).save_pretrained(half.head)
    head = starting_head(str(half.head), pair.target, 5, tmp_path / "start")
    stored = load_file(half.head / "model.safetensors")
    for name, tensor in head.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())
    assert head.config.num_speculative_steps == 5
    assert head.training
    assert not (tmp_path / "start").exists()


@pytest.mark.parametrize("start", ["scratch", "fitted"])
def test_scratch_is_made_once_and_then_read(pair, tmp_path, start):
    """All processes of a run, and a run that goes on, begin with the same weights."""
    folder, fitted = tmp_path / "start", []
    head = starting_head(start, pair.target, 2, folder, fitted.append)
    last = load_file(pair.target / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(head.state_dict()["block.mlp.up_proj.weight"], last)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    again = starting_head(start, pair.target, 4, folder, fitted.append).state_dict()
    assert torch.equal(again["block.mlp.up_proj.weight"], 2 * last)
    assert len(fitted) == (start == "fitted")


def test_a_layer_that_the_target_was_stored_without_is_named(mimo, tmp_path):
    bare = shutil.copytree(mimo, tmp_path / "bare")
    for path in bare.glob("*.safetensors"):
        kept = {n: t for n, t in load_file(path).items() if "mtp_layers" not in n}
        save_file(kept, path, {"format": "pt"})
    with pytest.raises(FastMTPError, match=r"has no tensor model\.mtp_layers\.0"):
        native_head(bare)


def test_a_start_that_is_nothing_is_refused(pair, tmp_path):
    kinds = "neither `scratch`, `fitted`, `native` nor a head directory"
    with pytest.raises(FastMTPError, match=kinds):
        starting_head("scratsch", pair.target, 3, tmp_path)
    with pytest.raises(FastMTPError, match="no MTP layer of MiMo's layout"):
        starting_head("native", pair.target, 3, tmp_path)
    other = pairs.make_pair(tmp_path, "qwen3")
    # Configuration of one family, weights of another.
    shutil.copytree(pair.head, tmp_path / "mixed")
    shutil.copy(other.head / "config.json", tmp_path / "mixed")
    with pytest.raises(FastMTPError, match="lacks the head's tensors"):
        starting_head(str(tmp_path / "mixed"), other.target, 3, tmp_path)
