"""SmolLM2-135M-Instruct from GGUF to a checkpoint.

`python -m fastmtp_sglang.models.smollm2_convert GGUF OUT`, see `gguf_checkpoint`.
"""

import sys
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from fastmtp_sglang.models.gguf_checkpoint import (
    read_model,
    read_tokenizer,
    write_model,
    write_tokenizer,
)


def convert(gguf: Path, out: Path) -> None:
    """Write config, generation config, weights and tokenizer of `gguf` to the directory `out`."""
    model = read_model(gguf)
    write_model(model, out, "HuggingFaceTB/SmolLM2-135M-Instruct")
    tokenizer = read_tokenizer(gguf, model.config.max_position_embeddings)
    # transformers reads `tokenizer.ggml.pre = smollm` as plain byte level. SmolLM2 splits digits
    # off first, which changes how several spaces before a number are cut ("a  1").
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    write_tokenizer(tokenizer, out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
