"""The tiny targets and heads of `pairs`, made once for all tests of training."""

import json
import shutil
from pathlib import Path

import pairs
import pytest
import tiny_models as models
import torch
from safetensors.torch import load_file, save_file

from fastmtp_sglang.head.module import FastMTPHead
from fastmtp_sglang.training.start import native_head


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> pairs.Pair:
    return pairs.make_pair(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="session")
def mimo(tmp_path_factory) -> Path:
    """A target in MiMo's layout, with its remote code, in two bfloat16 shards with an index."""
    folder = tmp_path_factory.mktemp("mimo")
    pair = pairs.make_pair(folder, "qwen2")
    head = FastMTPHead.from_pretrained(pair.head)
    directory = models.as_mimo(pair.target, head, folder / "mimo")
    config = json.loads((directory / "config.json").read_text())
    # As the published checkpoint: the code that it names is not here, and is not needed.
    code = {"AutoConfig": "configuration_mimo.MiMoConfig"}
    (directory / "config.json").write_text(
        json.dumps(config | {"model_type": "mimo", "auto_map": code})
    )
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


@pytest.fixture(scope="session")
def _trained_once(mimo, tmp_path_factory) -> Path:
    head = native_head(mimo)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(1.5)
    folder = tmp_path_factory.mktemp("trained") / "head"
    head.save_pretrained(folder)
    return folder


@pytest.fixture
def trained(_trained_once, tmp_path) -> Path:
    """A head that started from the native layer and has changed; the test's own copy."""
    return shutil.copytree(_trained_once, tmp_path / "trained")
