"""Merge a trained head back into a checkpoint of its target, as the target's MTP layer.

For targets in MiMo's layout (`model.mtp_layers.0.*`). Everything else is untouched: files that hold
no tensor of the layer are copied byte for byte, and in the files that do, only the
bytes of those tensors change: names, dtypes, shapes, offsets and the index stay.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.compatibility import mimo_name
from fastmtp_sglang.training.target import load_tensors, target_config, tensor_files

_DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def merge_head(source: Path, target: Path, out: Path) -> None:
    """Write a full checkpoint of `target` whose MTP layer is the head of `source`.

    Args:
        source: a head directory or a checkpoint of a training run.
        target: a checkpoint in MiMo's layout.
        out: directory to create; it appears complete or not at all.

    Raises:
        FastMTPError: `out` exists, the target has no such layer, or a tensor differs in shape.
    """
    if out.exists():
        raise FastMTPError(f"--out {out} exists already. Choose another directory or remove it.")
    if target_config(target).architectures != ["MiMoForCausalLM"]:
        raise FastMTPError(
            f"{target} is no checkpoint of MiMo's layout: only there a head is a part of its "
            "target. Export a head directory (without --merge) and serve it with --draft."
        )
    files = tensor_files(target)
    names = list(tensor_files(source))
    head = {mimo_name(name): tensor for name, tensor in load_tensors(source, names).items()}
    missing = sorted(head.keys() - files.keys())
    if missing:
        raise FastMTPError(
            f"target {target} has no tensor {missing[0]}, which the head {source} would replace: "
            "the head belongs to another target, or the target was stored without its MTP layer."
        )
    changed: dict[Path, dict[str, torch.Tensor]] = {}
    for name, tensor in head.items():
        changed.setdefault(files[name], {})[name] = tensor
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        for path in sorted(target.iterdir()):
            if path.is_dir():
                shutil.copytree(path, scratch / path.name)
                continue
            # A copy, not a link: a checkpoint must not change with the one it was made from.
            shutil.copyfile(path, scratch / path.name)
            if path in changed:
                _overwrite(scratch / path.name, changed[path])
        scratch.chmod(0o755)
        os.replace(scratch, out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _overwrite(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors over those of the same names in a safetensors file, in its dtypes."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
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
            file.seek(8 + size + start)
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
