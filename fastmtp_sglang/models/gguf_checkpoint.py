"""From a GGUF file to an ordinary Hugging Face checkpoint: float32, safetensors.

What the conversions of the built-in models share. Each runs as a process of its own: the caller
keeps neither torch's memory nor the noise of progress bars. Blocks become float32 exactly; nothing
is rounded a second time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def read_model(gguf: Path) -> PreTrainedModel:
    """Read the model of a GGUF file, dequantized to float32."""
    return AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
    )


def write_model(model: PreTrainedModel, out: Path, name: str) -> None:
    """Write config, generation config and weights.

    Args:
        model: of `read_model`.
        out: a directory.
        name: of the model that it is; GGUF has a training run's.
    """
    config = model.config
    # With these as they are SGLang would look for a GGUF file, and for no architecture at all.
    del config.quantization_config
    config.architectures = [type(model).__name__]
    config._model_name_or_path = name
    # GGUF stores float32: 9.999999747378752e-06 is the shortest float32 spelling of 1e-05.
    config.rms_norm_eps = float(str(np.float32(config.rms_norm_eps)))
    config.save_pretrained(out)
    model.generation_config._from_model_config = False  # it stands on its own from here on
    model.generation_config.save_pretrained(out)

    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    weights = {name: w.contiguous() for name, w in model.state_dict().items() if name not in tied}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def read_tokenizer(gguf: Path, max_length: int) -> Any:
    """Read the tokenizer of a GGUF file, for texts of so many tokens."""
    return AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, model_max_length=max_length, local_files_only=True
    )


def write_tokenizer(tokenizer: Any, out: Path, **settings: Any) -> None:
    """Write a tokenizer; `settings` go into its tokenizer_config.json."""
    tokenizer.save_pretrained(out)
    path = out / "tokenizer_config.json"
    written: dict[str, Any] = json.loads(path.read_text())
    # How this process found the files is no property of the tokenizer.
    for key in ("is_local", "local_files_only", "backend"):
        written.pop(key, None)
    path.write_text(json.dumps(written | settings, indent=2) + "\n")
