"""The configuration of a target, without running code that came with the checkpoint.

Read wherever a checkpoint is judged or loaded outside SGLang: transformers alone would stop to ask
whether the remote code of a MiMo checkpoint may run, and fail where nobody answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def checkpoint_config(source: str | Path) -> PreTrainedConfig:
    """Return the configuration of a checkpoint directory or hub id; MiMo's as a Qwen2 model's.

    Raises:
        OSError, ValueError: as `AutoConfig.from_pretrained`, for what it cannot read.
    """
    from transformers import AutoConfig, Qwen2Config

    fields = _fields(Path(source) / "config.json")
    if fields.get("architectures") == ["MiMoForCausalLM"]:
        # model_type "mimo" would ask for the remote code, whose only addition is the MTP layer.
        fields.pop("auto_map", None)
        return Qwen2Config.from_dict({**fields, "model_type": "qwen2"})
    return AutoConfig.from_pretrained(source, trust_remote_code=False)


def _fields(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, not an object.")
    return content
