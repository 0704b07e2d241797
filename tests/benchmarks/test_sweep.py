"""Shapes times draft vocabularies, as configurations with their flags.

Alone: pytest tests/benchmarks/test_sweep.py
"""

from pathlib import Path

import pytest

from fastmtp_benchmarks.configurations import Model
from fastmtp_benchmarks.sweep import sweep_configurations
from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.built_in import DraftHead
from fastmtp_sglang.models.catalog import SMOLLM2


def file(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    return str(path)


def test_a_sweep(tmp_path):
    files = [file(tmp_path / "v" / f"{name}.safetensors") for name in ("8k", "16k")]
    head = Path(file(tmp_path / "head" / "config.json")).parent
    served = Model(str(tmp_path), str(head), flags=("--page-size", "16"))
    shapes = [TreeShape.of(1), TreeShape.of(4), TreeShape.of(3, 8, 12)]
    found = sweep_configurations(served, shapes, ["full", *files], tmp_path)
    assert [configuration.name for configuration in found] == [
        "baseline",
        *(f"{shape}-{name}" for shape in ("k1", "k4", "3x8x12") for name in ("full", "8k", "16k")),
    ]
    chain, tree = found[6].served, found[9].served
    assert "--speculative-num-steps 4 --speculative-token-map" in chain
    assert "topk" not in chain
    assert tree.endswith(
        "--speculative-num-steps 3 --speculative-token-map "
        f"{files[1]} --page-size 16 --speculative-eagle-topk 8 --speculative-num-draft-tokens 12"
    )
    with pytest.raises(FastMTPError, match="two are called 8k"):
        sweep_configurations(served, shapes, [files[0]] * 2, tmp_path)
    with pytest.raises(FastMTPError, match="--vocabulary nowhere is not a file"):
        sweep_configurations(served, shapes, ["nowhere"], tmp_path)


def test_the_embedded_model_brings_a_head_of_each_depth(monkeypatch, tmp_path):
    asked = []

    def draft_head(num_steps, progress):
        asked.append(num_steps)
        config = file(tmp_path / f"head-{num_steps}" / "config.json")
        return DraftHead(Path(config).parent, trained=True)

    monkeypatch.setattr(SMOLLM2, "checkpoint", lambda *_: tmp_path)
    monkeypatch.setattr(SMOLLM2, "draft_head", draft_head)
    shapes = [TreeShape.of(2), TreeShape.of(3)]
    _, two, three = sweep_configurations(Model(SMOLLM2.name), shapes, ["full"], tmp_path)
    assert asked == [2, 3]
    assert f"--speculative-draft-model-path {tmp_path / 'head-2'} " in two.served
    assert f"--speculative-draft-model-path {tmp_path / 'head-3'} " in three.served
