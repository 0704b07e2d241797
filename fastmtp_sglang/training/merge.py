"""Merge a trained head back into a checkpoint of its target, as the target's MTP layer.

For targets in MiMo's layout (`model.mtp_layers.0.*`). Everything else is untouched: files that hold
no tensor of the layer are copied byte for byte, and in the files that do, only the
bytes of those tensors change: names, dtypes, shapes, offsets and the index stay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Set
from pathlib import Path

import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.atomic import folder_at_once
from fastmtp_sglang.files.tensors import read_header
from fastmtp_sglang.head.compatibility import MIMO_LAYER, check_compatible, mimo_name
from fastmtp_sglang.training.target import checkpoint_files, load_tensors, target_config

_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def merge_head(source: Path, target: Path, out: Path) -> None:
    """Write a full checkpoint of `target` whose MTP layer is the head of `source`.

    Args:
        source: a head directory or a checkpoint of a training run.
        target: a checkpoint in MiMo's layout.
        out: directory to create; it appears complete or not at all.

    Raises:
        FastMTPError: `out` exists or lies in `target`, the head was made for another target
            (family, tokenizer, set of tensors), or a tensor differs in shape.
    """
    if out.exists():
        raise FastMTPError(f"--out {out} exists already. Choose another directory or remove it.")
    if target_config(target).architectures != ["MiMoForCausalLM"]:
        raise FastMTPError(
            f"{target} is no checkpoint of MiMo's layout: only there a head is a part of its "
            "target. Export a head directory (without --merge) and serve it with --draft."
        )
    if target.resolve() in out.resolve().parents:
        raise FastMTPError(
            f"--out {out} lies in the target {target}. Choose a directory beside it."
        )
    files = checkpoint_files(target)
    names = list(checkpoint_files(source))
    head = {mimo_name(name): tensor for name, tensor in load_tensors(source, names).items()}
    _check_same_layer(head.keys(), {n for n in files if n.startswith(MIMO_LAYER)}, source, target)
    check_compatible(target, source)
    changed: dict[Path, dict[str, torch.Tensor]] = {}
    for name, tensor in head.items():
        changed.setdefault(files[name], {})[name] = tensor
    with folder_at_once(out) as scratch:
        for path in sorted(target.iterdir()):
            if path.is_dir():
                shutil.copytree(path, scratch / path.name)
                continue
            # A copy, not a link: a checkpoint must not change with the one it was made from.
            shutil.copyfile(path, scratch / path.name)
            if path in changed:
                _overwrite(scratch / path.name, changed[path])


def _check_same_layer(head: Set[str], layer: Set[str], source: Path, target: Path) -> None:
    missing, left = sorted(head - layer), sorted(layer - head)
    if missing:
        raise FastMTPError(
            f"target {target} has no tensor {missing[0]}, which the head {source} would replace: "
            "the head belongs to another target, or the target was stored without its MTP layer."
        )
    if left:
        raise FastMTPError(
            f"the head {source} has no tensor for {left[0]} of the target {target}, which would "
            "keep its old value: the head belongs to another target."
        )


def _overwrite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors over those of the same names in a safetensors file, in its dtypes."""
    header, begin = read_header(path)
    with path.open("r+b") as file:
        for name, tensor in tensors.items():
            entry = header[name]
            if entry["shape"] != list(tensor.shape):
                raise FastMTPError(
                    f"tensor {name} has shape {entry['shape']} in the target and "
                    f"{list(tensor.shape)} in the head: they do not belong together."
                )
            dtype = next((kind for kind, code in _DTYPES.items() if code == entry["dtype"]), None)
            if dtype is None:
                raise FastMTPError(
                    f"tensor {name} is stored as {entry['dtype']} in the target; only "
                    f"{', '.join(_DTYPES.values())} can be written. Merge into the original "
                    "checkpoint, not a quantized one."
                )
            content = tensor.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
            start, end = entry["data_offsets"]
            if len(content) != end - start:
                raise FastMTPError(f"tensor {name} needs {len(content)} bytes, not {end - start}.")
            file.seek(begin + start)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
