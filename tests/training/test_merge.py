"""A head merged back into its target: the layer changes and nothing else, all of it or none.

Alone: pytest tests/training/test_merge.py
"""

import json
import os
import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.compatibility import check_compatible, mimo_name
from fastmtp_sglang.training.merge import merge_head
from fastmtp_sglang.training.start import native_head

pytestmark = pytest.mark.heavy


def all_tensors(directory):
    found = {}
    for path in directory.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_merge_changes_the_layer_and_nothing_else(mimo, trained, tmp_path):
    merge_head(trained, mimo, tmp_path / "merged")
    before, after = all_tensors(mimo), all_tensors(tmp_path / "merged")
    assert before.keys() == after.keys()
    layer = {mimo_name(name): t for name, t in load_file(trained / "model.safetensors").items()}
    assert len(layer) == 16
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype
        if name in layer:
            assert torch.equal(tensor, layer[name].to(torch.bfloat16))
            assert not torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor, before[name])
    for path in mimo.iterdir():
        merged = tmp_path / "merged" / path.name
        if path.suffix != ".safetensors":
            assert merged.read_bytes() == path.read_bytes()
        assert merged.stat().st_size == path.stat().st_size
    check_compatible(tmp_path / "merged", None)


def test_merging_an_unchanged_head_gives_the_same_bytes(mimo, tmp_path):
    native_head(mimo).save_pretrained(tmp_path / "same")
    merge_head(tmp_path / "same", mimo, tmp_path / "merged")
    for path in mimo.iterdir():
        assert (tmp_path / "merged" / path.name).read_bytes() == path.read_bytes()


def test_merge_refuses_what_does_not_fit(mimo, trained, pair, tmp_path):
    with pytest.raises(FastMTPError, match="no checkpoint of MiMo's layout"):
        merge_head(trained, pair.target, tmp_path / "merged")
    weights = load_file(trained / "model.safetensors")
    weights["final_layernorm.weight"] = torch.ones(65)
    save_file(weights, trained / "model.safetensors")
    with pytest.raises(FastMTPError, match=r"final_layernorm.weight has shape \(65,\).*\(64,\)"):
        merge_head(trained, mimo, tmp_path / "merged")
    # Nothing half-written is left.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trained"]
    (tmp_path / "merged").mkdir()
    with pytest.raises(FastMTPError, match="exists already"):
        merge_head(trained, mimo, tmp_path / "merged")


def test_merge_refuses_a_head_of_another_tokenizer(mimo, trained, tmp_path):
    config = json.loads((trained / "config.json").read_text())
    config["tokenizer_fingerprint"] = "sha256:0"
    (trained / "config.json").write_text(json.dumps(config))
    with pytest.raises(FastMTPError, match=r"made for a tokenizer with fingerprint sha256:0"):
        merge_head(trained, mimo, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merge_refuses_a_head_with_fewer_tensors(mimo, pair, tmp_path):
    """A Llama head has no biases: MiMo's would stay as they were."""
    with pytest.raises(FastMTPError, match=r"no tensor for .*bias of the target .* keep its old"):
        merge_head(pair.head, mimo, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_merge_changes_the_shards_that_the_index_names(mimo, trained, tmp_path):
    """A file beside the shards, as `consolidated.safetensors`, is not what is served."""
    target = shutil.copytree(mimo, tmp_path / "target")
    save_file(all_tensors(mimo), target / "zz-consolidated.safetensors", {"format": "pt"})
    merge_head(trained, target, tmp_path / "merged")
    merged = native_head(tmp_path / "merged").state_dict()
    for name, tensor in load_file(trained / "model.safetensors").items():
        assert torch.equal(merged[name], tensor.to(torch.bfloat16).float())
    beside = "zz-consolidated.safetensors"
    assert (tmp_path / "merged" / beside).read_bytes() == (target / beside).read_bytes()


def test_what_a_killed_merge_left_is_removed_by_the_next(mimo, trained, tmp_path):
    """Killed (SIGKILL) at each file that it copies, then let through."""
    out = tmp_path / "folder" / "merged"
    for files in (1, 3, 5):
        child = os.fork()
        if not child:
            left = files

            def count(event, args):
                nonlocal left
                if event == "shutil.copyfile":
                    left -= 1
                    if not left:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(count)
            try:
                merge_head(trained, mimo, out)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert len(list(out.parent.iterdir())) == 1
    merge_head(trained, mimo, out)
    assert [path.name for path in out.parent.iterdir()] == ["merged"]
    assert {path.name for path in out.iterdir()} == {path.name for path in mimo.iterdir()}


def test_merge_refuses_a_layer_that_the_target_was_stored_without(mimo, trained, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(mimo, bare)
    for path in bare.glob("*.safetensors"):
        kept = {n: t for n, t in load_file(path).items() if "mtp_layers" not in n}
        save_file(kept, path, {"format": "pt"})
    with pytest.raises(FastMTPError, match=r"has no tensor model\.mtp_layers\.0"):
        merge_head(trained, bare, tmp_path / "merged")


def test_out_inside_the_target_is_refused(mimo, trained, tmp_path):
    """The copy would hold a folder of its own beginnings."""
    target = shutil.copytree(mimo, tmp_path / "target")
    (tmp_path / "link").symlink_to(target)
    before = sorted(target.rglob("*"))
    for out in (target / "merged", tmp_path / "link" / "below" / "merged"):
        with pytest.raises(
            FastMTPError, match=r"--out .*merged lies in the target .*target\. Choose"
        ):
            merge_head(trained, target, out)
    assert sorted(target.rglob("*")) == before


def test_a_quantized_layer_is_not_written_over(mimo, trained, tmp_path):
    """Bytes of a head's dtype would mean other numbers there."""
    target = shutil.copytree(mimo, tmp_path / "target")
    for path in target.glob("*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if name.endswith("mlp.up_proj.weight")]:
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
        save_file(tensors, path, {"format": "pt"})
    with pytest.raises(
        FastMTPError, match=r"up_proj\.weight is stored as F8_E4M3 .*only BF16, F16"
    ):
        merge_head(trained, target, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_source_that_is_no_head_is_named(mimo, tmp_path):
    with pytest.raises(FastMTPError, match=rf"^{tmp_path} holds no \.safetensors file: give"):
        merge_head(tmp_path, mimo, tmp_path / "merged")
