"""Head directories and merged checkpoints.

Alone: pytest tests/training/test_export.py
"""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pairs
import pytest
import tiny_models as models
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.compatibility import check_compatible, mimo_name
from fastmtp_sglang.head.module import FastMTPHead
from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint
from fastmtp_sglang.training.export import export_head
from fastmtp_sglang.training.merge import merge_head
from fastmtp_sglang.training.start import native_head, starting_head
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary


def draft_vocabulary(path: Path, target: Path, **changes) -> Path:
    """A list of three ids that fits a target, but for `changes`."""
    fields = {
        "vocab_size": 49152,
        "tokenizer_fingerprint": tokenizer_fingerprint(AutoTokenizer.from_pretrained(target)),
    } | changes
    scripts = torch.zeros(fields["vocab_size"], dtype=torch.int8)
    ids = {"en": torch.tensor([1, 2, 3])}
    DraftVocabulary(ids=ids, token_scripts=scripts, routes={"en": "en"}, **fields).save(path)
    return path


@pytest.fixture(scope="module")
def mimo(tmp_path_factory):
    """A MiMo-layout target in two shards with an index, in bfloat16, and its Qwen2 target."""
    folder = tmp_path_factory.mktemp("mimo")
    pair = pairs.make_pair(folder, "qwen2")
    head = FastMTPHead.from_pretrained(pair.head)
    directory = models.as_mimo(pair.target, head, folder / "mimo")
    tensors = {
        name: tensor.to(torch.bfloat16)
        for name, tensor in load_file(directory / "model.safetensors").items()
    }
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    # The MTP layer lies in both shards, beside other tensors.
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in shards.items():
        save_file({name: tensors[name] for name in own}, directory / file, {"format": "pt"})
    index = {"weight_map": {name: file for file, own in shards.items() for name in own}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


@pytest.fixture
def trained(mimo, tmp_path):
    """A head that started from the native layer and has changed."""
    head = native_head(mimo)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(1.5)
    head.save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


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
    with pytest.raises(FastMTPError, match=r"has no tensor model\.mtp_layers\.0"):
        native_head(bare)


def test_exported_head_fits_its_target_in_bfloat16(pair, tmp_path):
    listed = draft_vocabulary(tmp_path / "vocabulary.safetensors", pair.target)
    export_head(
        pair.head,
        tmp_path / "out",
        target=pair.target,
        vocabulary=tmp_path / "vocabulary.safetensors",
        bfloat16=True,
    )
    check_compatible(pair.target, tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    original = load_file(pair.head / "model.safetensors")
    for name, tensor in weights.items():
        assert torch.equal(tensor, original[name].to(torch.bfloat16))
    assert (tmp_path / "out" / FILE_NAME).read_bytes() == listed.read_bytes()
    assert "# FastMTP head for target" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(FastMTPError, match="exists already"):
        export_head(pair.head, tmp_path / "out", target=pair.target)
    with pytest.raises(FastMTPError, match=r"holds no config\.json"):
        export_head(tmp_path, tmp_path / "other", target=pair.target)
    wider = shutil.copytree(pair.target, tmp_path / "wider")
    config = json.loads((wider / "config.json").read_text())
    (wider / "config.json").write_text(json.dumps(config | {"vocab_size": 49153}))
    with pytest.raises(FastMTPError, match="the head belongs to another target"):
        export_head(pair.head, tmp_path / "other", target=wider)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("bytes", "not a safetensors file"),
        ("weights", "but not a draft vocabulary"),
        ("tokenizer", "made for another tokenizer"),
        ("rows", "made for a target with 49153 rows"),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_draft_vocabulary_that_serving_refuses_is_not_exported(
    pair, tmp_path, kind, message, beside
):
    path = tmp_path / "v.safetensors"
    if kind == "bytes":
        path.write_bytes(random.Random(0).randbytes(2000))
    elif kind == "weights":
        save_file({"a": torch.zeros(1)}, path)
    elif kind == "tokenizer":
        draft_vocabulary(path, pair.target, tokenizer_fingerprint="sha256:another")
    elif kind == "rows":
        draft_vocabulary(path, pair.target, vocab_size=49153)
    source = pair.head
    if beside and kind != "missing":
        source = shutil.copytree(pair.head, tmp_path / "head")
        (source / FILE_NAME).parent.mkdir()
        shutil.copy(path, source / FILE_NAME)
    elif beside:
        pytest.skip("a head without a vocabulary is exported without one")
    with pytest.raises(FastMTPError, match=message):
        export_head(
            source, tmp_path / "out", target=pair.target, vocabulary=None if beside else path
        )
    assert not (tmp_path / "out").exists()


def test_a_start_that_is_nothing_is_refused(pair, tmp_path):
    with pytest.raises(FastMTPError, match="neither `scratch`, `native` nor a head directory"):
        starting_head("scratsch", pair.target, 3, tmp_path)
    with pytest.raises(FastMTPError, match="no MTP layer of MiMo's layout"):
        starting_head("native", pair.target, 3, tmp_path)
    other = pairs.make_pair(tmp_path, "qwen3")
    # Configuration of one family, weights of another.
    shutil.copytree(pair.head, tmp_path / "mixed")
    shutil.copy(other.head / "config.json", tmp_path / "mixed")
    with pytest.raises(FastMTPError, match="lacks the head's tensors"):
        starting_head(str(tmp_path / "mixed"), other.target, 3, tmp_path)
