"""Whether a draft head fits its target, decided from configurations and file headers alone.

Runs in the main process before any weight is read, and in `fastmtp doctor`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files.tensors import read_header, tensor_files
from fastmtp_sglang.head.config import (
    ARCHITECTURE,
    FAMILIES,
    FastMTPConfig,
    architecture_of,
    describe,
)
from fastmtp_sglang.models.config import checkpoint_config

# Targets whose checkpoint holds an MTP layer that SGLang 0.5.23 turns into a draft model
# (configs/model_config.py, ModelConfig._config_draft_model).
NATIVE_ARCHITECTURES = frozenset(
    {
        "BailingMoeForCausalLM",
        "BailingMoeV2ForCausalLM",
        "BailingMoeV2_5ForCausalLM",
        "BailingMoeV3ForCausalLM",
        "DeepseekV3ForCausalLM",
        "DeepseekV32ForCausalLM",
        "Ernie4_5_MoeForCausalLM",
        "ExaoneMoEForCausalLM",
        "ExaoneMoeForCausalLM",
        "GigaChat35ForCausalLM",
        "Glm4MoeForCausalLM",
        "Glm4MoeLiteForCausalLM",
        "GlmMoeDsaForCausalLM",
        "HYV3ForCausalLM",
        "HYV4ForCausalLM",
        "InternS2PreviewForConditionalGeneration",
        "LongcatFlashForCausalLM",
        "MiMoForCausalLM",
        "NemotronHForCausalLM",
        "NemotronHPuzzleForCausalLM",
        "Qwen3MoeForCausalLM",
        "Qwen3NextForCausalLM",
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen4ExpForConditionalGeneration",
    }
)

# MTP architectures that cannot work, and why.
_REFUSED = {
    architecture: reason
    for reason, architectures in {
        "trains a different MTP layer for each step; FastMTP applies one recursively": (
            "MiMoV2FlashForCausalLM",
            "MiMoV2ForCausalLM",
            "Step3p5ForCausalLM",
            "Step3p7ForConditionalGeneration",
        ),
        "is accepted by SGLang 0.5.23 only with its built-in algorithms": (
            "DeepseekV4ForCausalLM",
        ),
        "shares its target's KV cache and needs --speculative-algorithm NEXTN": (
            "Gemma4AssistantForCausalLM",
            "Gemma4UnifiedAssistantForCausalLM",
        ),
    }.items()
    for architecture in architectures
}

MIMO_LAYER = "model.mtp_layers.0."


def mimo_name(name: str) -> str:
    """The name of a `FastMTPHead` tensor in a checkpoint of MiMo's layout."""
    return MIMO_LAYER + name.removeprefix("block.")


def has_native_head(target: Any) -> bool:
    """Whether a target's configuration promises an MTP layer in its own checkpoint.

    Raises:
        FastMTPError: it has one that FASTMTP cannot use.
    """
    architecture = target.architectures[0]
    _refuse_architecture(architecture)
    if architecture not in NATIVE_ARCHITECTURES:
        return False
    text_config = getattr(target, "text_config", target)
    # Architectures that do not write the field always ship the layer; 0 means that it was removed.
    return getattr(text_config, "num_nextn_predict_layers", 1) != 0


def check_compatible(target_path: str | Path, draft_path: str | Path | None) -> None:
    """Check a head directory against a target directory, as `fastmtp doctor` does.

    Args:
        target_path: a transformers checkpoint directory or hub id.
        draft_path: a head directory, or None for the target's native layer.

    Raises:
        FastMTPError: the draft cannot draft for this target.
    """
    FastMTPConfig.register_for_auto_class_loading()
    target = checkpoint_config(target_path)
    if draft_path is None:
        if not has_native_head(target):
            raise FastMTPError(
                f"{target_path} ({target.architectures[0]}) has no MTP layer of its own. "
                "Make a head with `fastmtp head init` and name it with --draft."
            )
        draft_path = target_path
    draft = target if draft_path == target_path else checkpoint_config(draft_path)
    check(str(target_path), target, str(draft_path), draft)


def check(target_path: str, target: Any, draft_path: str, draft: Any) -> None:
    """Compare architecture, dimensions, tokenizer and the names and shapes of the head's tensors.

    Args:
        target_path: directory or hub id of the target.
        target: its transformers configuration.
        draft_path: directory or hub id of the draft; the target's own for a native head.
        draft: its transformers configuration.

    Raises:
        FastMTPError: naming what differs and the way out.
    """
    architecture = architecture_of(draft)
    _refuse_architecture(architecture)
    if architecture != ARCHITECTURE and architecture not in NATIVE_ARCHITECTURES:
        raise FastMTPError(
            f"--speculative-draft-model-path {draft_path} holds {architecture}, which is no MTP "
            f"head: expected {ARCHITECTURE} (see `fastmtp head init`) or a model with a native MTP "
            "layer. For a separate small draft model use --speculative-algorithm STANDALONE."
        )
    target_architecture = architecture_of(target)
    if architecture == ARCHITECTURE and target_architecture not in FAMILIES:
        raise FastMTPError(
            f"--speculative-draft-model-path {draft_path} is a FastMTP head, which drafts for "
            f"{', '.join(FAMILIES)}; {target_path} is {target_architecture}. The head knows its "
            "target's text only, no images and no other layout. Use the target's native MTP layer "
            "if it has one, or serve without --speculative-algorithm."
        )
    ours = getattr(draft, "text_config", draft)
    theirs = getattr(target, "text_config", target)
    for field, label in (("hidden_size", "hidden size"), ("vocab_size", "vocabulary size")):
        mine, needed = getattr(ours, field), getattr(theirs, field)
        if mine != needed:
            raise FastMTPError(
                f"--speculative-draft-model-path {draft_path} has {label} {mine}, its target "
                f"{target_path} ({describe(theirs)}) has {needed}: the head belongs to another "
                "target. Use a head that was made for this one."
            )
    _check_tokenizer(target_path, draft_path, draft)
    if Path(draft_path).is_dir():
        _check_tensors(Path(draft_path), architecture, draft)


def _refuse_architecture(architecture: str) -> None:
    if architecture in _REFUSED:
        raise FastMTPError(
            f"{architecture} does not work with --speculative-algorithm fastmtp: it "
            f"{_REFUSED[architecture]}. Use SGLang's own algorithm for this model."
        )


def _check_tokenizer(target_path: str, draft_path: str, draft: Any) -> None:
    trained_with = getattr(draft, "tokenizer_fingerprint", None)
    if trained_with is None or draft_path == target_path:
        return
    from transformers import AutoTokenizer

    from fastmtp_sglang.models.fingerprint import tokenizer_fingerprint

    actual = tokenizer_fingerprint(
        AutoTokenizer.from_pretrained(target_path, trust_remote_code=False)
    )
    if actual != trained_with:
        raise FastMTPError(
            f"--speculative-draft-model-path {draft_path} was made for a tokenizer with "
            f"fingerprint {trained_with}, the target {target_path} has {actual}: the same id "
            "means another token. Use a head that was made for this target."
        )


def _check_tensors(directory: Path, architecture: str, draft: Any) -> None:
    expected = _expected_shapes(architecture, draft)
    if expected is None:
        return
    found = tensor_shapes(directory)
    if not found:
        raise FastMTPError(
            f"--speculative-draft-model-path {directory} holds no .safetensors file. "
            "Point it at the directory that `fastmtp head init` or training wrote."
        )
    missing = sorted(expected.keys() - found.keys())
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise FastMTPError(
            f"--speculative-draft-model-path {directory} lacks the head's tensors "
            f"{', '.join(missing[:3])}{more}. The checkpoint was exported without its MTP layer or "
            "is incomplete; download or export it again."
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise FastMTPError(
                f"--speculative-draft-model-path {directory}: tensor {name} has shape "
                f"{found[name]}, its config.json implies {shape}. They do not belong together."
            )


def _expected_shapes(architecture: str, draft: Any) -> dict[str, tuple[int, ...]] | None:
    """Names and shapes of a head's tensors; None where SGLang's own loader is the judge."""
    if architecture not in (ARCHITECTURE, "MiMoForCausalLM"):
        return None
    import torch

    from fastmtp_sglang.head.module import FastMTPHead

    config = draft if architecture == ARCHITECTURE else FastMTPConfig.from_target(draft)
    with torch.device("meta"):
        tensors = FastMTPHead(config).state_dict()
    rename = mimo_name if architecture == "MiMoForCausalLM" else str
    return {rename(name): tuple(tensor.shape) for name, tensor in tensors.items()}


def tensor_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint, from the headers of its files."""
    files = tensor_files(directory)
    headers = {path: read_header(path)[0] for path in set(files.values())}
    return {name: tuple(headers[path][name]["shape"]) for name, path in files.items()}
