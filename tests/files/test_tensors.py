"""Which file holds a tensor: the index decides, and damage is one line.

Alone: pytest tests/files/test_tensors.py
"""

import json

import pytest
import torch
from safetensors.torch import save_file

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.tensors import read_header, tensor_files

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path):
    """Two shards with an index, and a file beside them that it does not name."""
    for name, tensors in {"a": ["x", "y"], "b": ["z"], "consolidated": ["x", "y", "z"]}.items():
        save_file({key: torch.zeros(3) for key in tensors}, tmp_path / f"{name}.safetensors")
    weight_map = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_the_index_decides(sharded):
    assert {name: path.stem for name, path in tensor_files(sharded).items()} == {
        "x": "a", "y": "a", "z": "b",
    }  # fmt: skip


def test_without_an_index_every_file_counts(sharded):
    (sharded / INDEX).unlink()
    (sharded / "consolidated.safetensors").unlink()
    assert {name: path.stem for name, path in tensor_files(sharded).items()} == {
        "x": "a", "y": "a", "z": "b",
    }  # fmt: skip
    assert tensor_files(sharded / "none") == {}


def test_header(sharded):
    header, begin = read_header(sharded / "a.safetensors")
    assert header["x"]["shape"] == [3]
    size = (sharded / "a.safetensors").stat().st_size
    assert begin + header["y"]["data_offsets"][1] == size


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', "\0"])
def test_damaged_index(sharded, content):
    (sharded / INDEX).write_text(content)
    with pytest.raises(FastMTPError, match=rf"{INDEX} is damaged"):
        tensor_files(sharded)


def test_index_that_promises_what_is_not_there(sharded):
    save_file({"y": torch.zeros(3)}, sharded / "a.safetensors")
    assert set(tensor_files(sharded)) == {"y", "z"}
    (sharded / "b.safetensors").unlink()
    with pytest.raises(FastMTPError, match=r"b\.safetensors is missing"):
        tensor_files(sharded)


@pytest.mark.parametrize("kept", [0, 4, 30])
def test_damaged_file(sharded, kept):
    path = sharded / "a.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FastMTPError, match=r"a\.safetensors is no safetensors file"):
        tensor_files(sharded)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(FastMTPError, match=r"a\.safetensors is no safetensors file"):
        tensor_files(sharded)
