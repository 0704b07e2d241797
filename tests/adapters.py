"""LoRA adapters with random weights, as PEFT saves them, and targets that these are merged into."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OUTER = ("embed_tokens", "lm_head")


def adapter(
    target: Path,
    directory: Path,
    *,
    seed: int,
    rank: int,
    modules: tuple[str, ...] = LINEAR,
    std: float = 0.02,
) -> Path:
    """An adapter of all layers' `modules`, which adds numbers of about `std` to their weights."""
    source = torch.Generator().manual_seed(seed)
    tensors, alpha = {}, 2 * rank
    for name, weight in load_file(target / "model.safetensors").items():
        module = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if module not in modules:
            continue
        # An embedding's are for rows that are looked up: the other way around.
        outputs, inputs = weight.shape if module != "embed_tokens" else weight.T.shape
        a = torch.randn(rank, inputs, generator=source)
        b = torch.randn(outputs, rank, generator=source)
        b *= std / rank**0.5 / (alpha / rank)
        kind = "embedding_" if module == "embed_tokens" else ""
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_{kind}"
        suffix = "" if kind else ".weight"
        tensors |= {f"{prefix}A{suffix}": a, f"{prefix}B{suffix}": b}
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(modules),
        "bias": "none",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def merged(target: Path, adapter_directory: Path, directory: Path) -> Path:
    """A checkpoint of the target with an adapter in its weights."""
    shutil.copytree(target, directory)
    config = json.loads((adapter_directory / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / config["r"]
    added = load_file(adapter_directory / "adapter_model.safetensors")
    weights = load_file(target / "model.safetensors")
    for name, a in added.items():
        if "_A" not in name:
            continue
        b = added[name.replace("_A", "_B")]
        of = name.removeprefix("base_model.model.").split(".lora_")[0] + ".weight"
        difference = scaling * (b @ a)
        weights[of] = weights[of] + (difference.T if "embedding_A" in name else difference)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
