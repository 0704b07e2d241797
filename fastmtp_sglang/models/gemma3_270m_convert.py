"""Gemma 3 270M (the base model) from GGUF to a checkpoint.

`python -m fastmtp_sglang.models.gemma3_270m_convert GGUF OUT`, see `gguf_checkpoint`.
"""

import sys
from pathlib import Path

from fastmtp_sglang.models.gguf_checkpoint import (
    read_model,
    read_tokenizer,
    write_model,
    write_tokenizer,
)


def convert(gguf: Path, out: Path) -> None:
    """Write config, generation config, weights and tokenizer of `gguf` to the directory `out`."""
    model = read_model(gguf)
    write_model(model, out, "google/gemma-3-270m")
    tokenizer = read_tokenizer(gguf, model.config.max_position_embeddings)
    # Gemma answers with noise to a text that does not begin with BOS, and transformers does not
    # read `tokenizer.ggml.add_bos_token`. Set here it is in tokenizer.json, so that whoever
    # tokenizes a plain text, SGLang among them, puts it there once.
    tokenizer.add_bos_token = True
    write_tokenizer(tokenizer, out, add_bos_token=True)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
