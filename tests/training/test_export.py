"""Head directories: weights, card and draft vocabulary, and none that its target refuses.

Alone: pytest tests/training/test_export.py
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.compatibility import check_compatible
from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint
from fastmtp_sglang.training.export import export_head
from fastmtp_sglang.vocabulary.draft_vocabulary import FILE_NAME, DraftVocabulary

pytestmark = pytest.mark.heavy


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


@pytest.mark.parametrize("beside", [False, True])
def test_a_draft_vocabulary_that_serving_refuses_is_not_exported(pair, tmp_path, beside):
    path = tmp_path / "v.safetensors"
    draft_vocabulary(path, pair.target, tokenizer_fingerprint="sha256:another")
    source = pair.head
    if beside:
        source = shutil.copytree(pair.head, tmp_path / "head")
        (source / FILE_NAME).parent.mkdir()
        shutil.copy(path, source / FILE_NAME)
    with pytest.raises(FastMTPError, match="made for another tokenizer"):
        export_head(
            source, tmp_path / "out", target=pair.target, vocabulary=None if beside else path
        )
    assert not (tmp_path / "out").exists()
