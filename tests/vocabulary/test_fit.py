"""A draft vocabulary beside a head, and whether it is one of the target's.

Alone: pytest tests/vocabulary/test_fit.py
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary
from fastmtp_sglang.vocabulary.fit import beside_head, load_for

SEED = 20250918


@pytest.fixture(scope="module")
def target(tiny_folder, tmp_path_factory) -> Path:
    """The tiny model's files, with the model type that transformers asks for."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("fit") / "target")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    return folder


@pytest.fixture
def written(tiny, tmp_path):
    """A file of three ids that fits the target, but for `changes`."""

    def written(**changes) -> Path:
        fields = {"vocab_size": 760, "tokenizer_fingerprint": tiny.fingerprint} | changes
        scripts = torch.zeros(fields["vocab_size"], dtype=torch.int8)
        ids = {"en": torch.tensor([1, 2, 3])}
        made = DraftVocabulary(ids=ids, token_scripts=scripts, routes={"en": "en"}, **fields)
        made.save(tmp_path / "v.safetensors")
        return tmp_path / "v.safetensors"

    return written


def test_only_a_file_lies_beside_a_head(tmp_path):
    assert beside_head(tmp_path) is None
    assert beside_head(tmp_path / "none") is None
    path = tmp_path / FILE_NAME
    path.mkdir(parents=True)
    assert beside_head(tmp_path) is None
    path.rmdir()
    path.write_bytes(b"")
    assert beside_head(str(tmp_path)) == path


def test_the_targets_own_rows_and_tokenizer_are_what_counts(target, written, tmp_path):
    assert load_for(written(), target).ids["en"].tolist() == [1, 2, 3]
    # A model of texts and images says how many rows it has one level down.
    nested = shutil.copytree(target, tmp_path / "nested")
    config = json.loads((nested / "config.json").read_text())
    nested_config = {"model_type": "llava", "text_config": config | {"vocab_size": 768}}
    (nested / "config.json").write_text(json.dumps(nested_config))
    assert load_for(written(vocab_size=768), nested).vocab_size == 768


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("bytes", "not a safetensors file"),
        ("weights", "but not a draft vocabulary"),
        ("tokenizer", "made for another tokenizer"),
        ("rows", "made for a target with 761 rows"),
    ],
)
def test_what_serving_refuses(target, written, tmp_path, kind, message):
    path = tmp_path / "v.safetensors"
    if kind == "bytes":
        path.write_bytes(random.Random(SEED).randbytes(2000))
    elif kind == "weights":
        save_file({"a": torch.zeros(1)}, path)
    elif kind == "tokenizer":
        written(tokenizer_fingerprint="sha256:another")
    elif kind == "rows":
        written(vocab_size=761)
    with pytest.raises(FastMTPError, match=message):
        load_for(path, target)
