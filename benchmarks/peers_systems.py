"""The systems that `peers` compares: each takes prompts as token ids and answers greedily.

A system is a context manager; while it is entered, `answer` takes as many prompts as one batch has
and returns when all have their new tokens. The end of sequence is a token like any other, so that
every system does the same work. Only the called one computes; the others wait without spinning.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import httpx

from fastmtp_benchmarks.peers_gguf import write_gguf
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.servers.http_client import AsyncSession, words
from fastmtp_sglang.servers.server_process import ServerProcess

# As many as transformers' documentation of prompt lookup proposes.
PROMPT_LOOKUP_TOKENS = 10
_TIMEOUT = 600.0  # seconds for one answer
_CHILD = Path(__file__).with_name("peers_llama_child.py")


@dataclass(frozen=True)
class Answers:
    """What one batch brought: ids per prompt, and SGLang's counters over all of them."""

    ids: list[list[int]]
    verifications: int = 0
    accepted_drafts: int = 0


class System(ABC):
    """See the module's docstring; `dtype` is what its matrices are stored in."""

    largest_batch: ClassVar[int | None] = None

    def __init__(self, name: str, dtype: str) -> None:
        self.name = name
        self.dtype = dtype
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    @property
    def label(self) -> str:
        """Name and dtype."""
        return f"{self.name} {self.dtype}"

    @abstractmethod
    def _start(self, stack: ExitStack) -> None:
        """Make ready to answer; what has to end later goes onto `stack`."""

    @abstractmethod
    def answer(self, prompts: Sequence[list[int]], tokens: int) -> Answers:
        """Return exactly `tokens` new ids per prompt; raises FastMTPError."""


class Transformers(System):
    """`generate` in this process, prompts padded on the left."""

    def __init__(self, model: Path, dtype: str, threads: int) -> None:
        super().__init__("transformers", dtype)
        self._path, self._threads = model, threads
        self._options: dict[str, Any] = {}

    def _start(self, stack: ExitStack) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(self._threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            self._path, dtype=getattr(torch, self.dtype)
        ).eval()
        # The checkpoint's own would end answers early.
        self._model.generation_config.eos_token_id = None
        self._model.config.eos_token_id = None

    def answer(self, prompts: Sequence[list[int]], tokens: int) -> Answers:
        """See `System.answer`."""
        import torch

        longest = max(map(len, prompts))
        padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])
        mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts])
        ids = self._model.generate(
            padded,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            **self._options,
        )
        return Answers(ids[:, longest:].tolist())


class PromptLookup(Transformers):
    """`generate` with drafts out of the prompt, which transformers does for one prompt alone."""

    largest_batch = 1

    def __init__(self, model: Path, dtype: str, threads: int) -> None:
        super().__init__(model, dtype, threads)
        self.name = "transformers-prompt-lookup"
        self._options = {"prompt_lookup_num_tokens": PROMPT_LOOKUP_TOKENS}


class LlamaCpp(System):
    """llama.cpp in a child process of `python`, over a GGUF file made from the checkpoint."""

    def __init__(self, model: Path, dtype: str, threads: int, python: str) -> None:
        super().__init__("llama.cpp", dtype)
        self._path, self._threads, self._python = model, threads, python
        self.version: str | None = None

    def _start(self, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastmtp-peers-")))
        file = folder / "model.gguf"
        write_gguf(self._path, file, self.dtype)
        self._errors = folder / "stderr"
        command = [self._python, str(_CHILD), str(file), str(self._threads)]
        with self._errors.open("w") as errors:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._child = stack.enter_context(child)
        stack.callback(self._child.kill)  # before Popen waits for its end
        self.version = self._read()["version"]

    def answer(self, prompts: Sequence[list[int]], tokens: int) -> Answers:
        """See `System.answer`."""
        assert self._child.stdin is not None
        try:
            print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._child.stdin)
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # reading says why
        return Answers(self._read()["answers"])

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            code = self._child.wait()
            last = (self._errors.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise FastMTPError(f"{self.label} ended with exit code {code}: {last}")
        return json.loads(line)


class Server(System):
    """`sglang serve`, asked with one request per prompt, all at the same time."""

    def __init__(
        self, name: str, dtype: str, model: str, arguments: Sequence[str], threads: int
    ) -> None:
        super().__init__(name, dtype)
        self._server = ServerProcess(model, arguments, env={"OMP_NUM_THREADS": str(threads)})

    def _start(self, stack: ExitStack) -> None:
        stack.enter_context(self._server)
        self._runner = stack.enter_context(asyncio.Runner())
        self._requests = _Requests(None, _TIMEOUT, [self._server.url])
        stack.callback(lambda: self._runner.run(self._requests.close()))

    def answer(self, prompts: Sequence[list[int]], tokens: int) -> Answers:
        """See `System.answer`."""
        url = f"{self._server.url}/generate"
        try:
            answered = self._runner.run(self._requests.all_of(url, prompts, tokens))
        except httpx.HTTPStatusError as error:
            told = f"{error.response.status_code}: {error.response.text[:500]}"
            raise FastMTPError(f"{self.label} answered {told}") from error
        except httpx.HTTPError as error:
            self._server.check_alive()
            raise FastMTPError(
                f"{self.label} broke off while answering ({words(error)})"
            ) from error
        meta = [one["meta_info"] for one in answered]
        return Answers(
            ids=[one["output_ids"] for one in answered],
            verifications=sum(one.get("spec_verify_ct") or 0 for one in meta),
            accepted_drafts=sum(one.get("spec_num_correct_drafts") or 0 for one in meta),
        )


class _Requests(AsyncSession):
    async def all_of(
        self, url: str, prompts: Sequence[list[int]], tokens: int
    ) -> list[dict[str, Any]]:
        return await asyncio.gather(*(self._one(url, ids, tokens) for ids in prompts))

    async def _one(self, url: str, ids: list[int], tokens: int) -> dict[str, Any]:
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        body = {"input_ids": ids, "sampling_params": sampling}
        return (await self._client.post(url, json=body)).raise_for_status().json()
