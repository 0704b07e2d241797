"""What makes the data of a distillation run: the settings that a resumed run must share.

Endpoints, concurrency, shard size and the number of conversations are not among them: they may
change from one run to the next without changing what a request asks.
"""

from pydantic import BaseModel

from fastmtp_sglang.distill.records import Sampling
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files import changes


class Settings(BaseModel):
    """Settings of a run, as `manifest.json` keeps them.

    Attributes:
        model: As `--model` named it.
        tokenizer_fingerprint: Of the target's tokenizer.
        chat_template_sha256: Of the template that made the prompts.
        prompts: Name and signature of each prompt source; empty when the target writes them.
        sampling: For answers.
        prompt_sampling: For user turns that the target writes; None with given prompts.
        prompt_starts: First words of self-written opening prompts, taken in turn; may be empty.
        turns: User turns of a self-written conversation, the most of a given one (None: all).
        samples: Answers to each prompt.
        system: System message of conversations without one, None for the template's own.
        keep_truncated: Whether answers cut by length are kept.
        seed: Of everything drawn here.
    """

    model: str
    tokenizer_fingerprint: str
    chat_template_sha256: str
    prompts: list[tuple[str, str]]
    sampling: Sampling
    prompt_sampling: Sampling | None
    prompt_starts: list[str] = []
    turns: int | None
    samples: int
    system: str | None
    keep_truncated: bool
    seed: int


# What the command line calls a setting.
_FLAGS = {name: f"--{name}" for name in Settings.model_fields} | {
    "tokenizer_fingerprint": "the tokenizer of --model",
    "chat_template_sha256": "the chat template of --model",
    "prompts": "--prompts or --self-prompt",
    "sampling": "--temperature, --top-k, --top-p, --max-new-tokens",
    "prompt_sampling": "--prompt-temperature, --prompt-top-k, --prompt-top-p, --prompt-max-tokens",
    "prompt_starts": "--prompt-starts",
    "keep_truncated": "--keep-truncated",
}


def differences(before: Settings, now: Settings) -> list[str]:
    """Return what differs, in the words of the command line."""
    return changes.differences(before.model_dump(), now.model_dump(), _FLAGS)


def check_sampling(sampling: Sampling, prefix: str = "") -> None:
    """Refuse values that SGLang would refuse, or that mean something else than they seem.

    `prefix` is what the flags begin with, such as "prompt-". Raises FastMTPError.
    """
    if not 0 <= sampling.temperature <= 10:
        raise FastMTPError(
            f"--{prefix}temperature {sampling.temperature}: must be from 0 (greedy) to 10"
        )
    if sampling.top_k != -1 and sampling.top_k < 1:
        raise FastMTPError(f"--{prefix}top-k {sampling.top_k}: must be at least 1, or -1 for all")
    if not 0 < sampling.top_p <= 1:
        raise FastMTPError(f"--{prefix}top-p {sampling.top_p}: must be above 0 and at most 1")
    if sampling.max_new_tokens < 1:
        name = "prompt-max-tokens" if prefix else "max-new-tokens"
        raise FastMTPError(f"--{name} {sampling.max_new_tokens}: must be at least 1")
