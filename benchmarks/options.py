"""From the options of a command line to a `Plan`, checked before anything expensive starts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fastmtp_benchmarks.configurations import Configuration, Model, redacted
from fastmtp_benchmarks.connect import Api, load_tokenizer
from fastmtp_benchmarks.endpoint import Sampling
from fastmtp_benchmarks.load import Level
from fastmtp_benchmarks.runs import Plan
from fastmtp_benchmarks.shapes import parse_shape, shape_task
from fastmtp_benchmarks.task import Task
from fastmtp_benchmarks.tasks import load_tasks
from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.models import smollm2

# Of a throughput task, when --limit does not say: enough for the highest usual concurrency.
_SHAPE_CONVERSATIONS = 64


@dataclass(frozen=True)
class Options:
    """What `fastmtp bench` and `fastmtp bench sweep` share; named as the options are."""

    output: Path | None
    task: Sequence[str]
    shape: Sequence[str]
    shape_text: Sequence[str]
    limit: int | None
    concurrency: str | None
    rate: str | None
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    output_length: int | None
    timeout: float
    time_limit: float | None
    retries: int
    seed: int
    repeats: int
    rerun: bool
    tokenizer: str | None
    api_key: str | None
    side_by_side: bool

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """The options among a command's variables, which bear the same names."""
        values = {field.name: given[field.name] for field in fields(cls)}
        for name in ("task", "shape", "shape_text"):
            values[name] = values[name] or ()
        return cls(**values)

    @property
    def directory(self) -> Path:
        """The output directory; raises FastMTPError without one."""
        if self.output is None:
            raise FastMTPError("--output: give a directory for the report, such as results/mine")
        return self.output

    def levels(self) -> list[Level]:
        """Return the load levels; raises FastMTPError."""
        if self.rate is None:
            values = numbers("--concurrency", self.concurrency or "1", int)
            return [Level(concurrency=value) for value in values]
        if self.concurrency is not None:
            raise FastMTPError("--concurrency and --rate: give one of them, a load is one of them")
        return [Level(rate=value) for value in numbers("--rate", self.rate, float)]

    def tasks(self, tokenizer: Any) -> list[Task]:
        """Load the tasks; raises FastMTPError.

        With a --shape-text, --task and --shape are both measured; without, --task is the text.
        """
        if not self.task and not self.shape:
            raise FastMTPError(
                "--task: give what to ask, such as a .jsonl file or hub:mt_bench; or --shape "
                "1024x256"
            )
        shapes = [parse_shape(text) for text in self.shape]
        if not shapes:
            return load_tasks(self.task, self.limit)
        tasks = load_tasks(self.task)
        texts = load_tasks(self.shape_text) if self.shape_text else tasks
        count = self.limit or _SHAPE_CONVERSATIONS
        made = [shape_task(shape, count, tokenizer, texts) for shape in shapes]
        return [*load_tasks(self.task, self.limit), *made] if self.shape_text else made

    def plan(
        self,
        model: Model | None,
        configurations: Callable[[Path], list[Configuration]],
        *,
        baseline: str,
        api: Api = "auto",
    ) -> Plan:
        """Check everything and return what to run.

        Args:
            model: What servers that are started here serve, None when they run already.
            configurations: Makes the configurations of a benchmark in the given directory.
            baseline: Name of the configuration that speedups compare with.
            api: What to speak to endpoints.

        Raises:
            FastMTPError: Any option that cannot work.
        """
        directory = self.directory
        levels = self.levels()
        tokenizer = self._tokenizer(model)
        return Plan(
            output=directory,
            tasks=self.tasks(tokenizer),
            configurations=configurations(directory),
            levels=levels,
            sampling=Sampling(
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                max_new_tokens=self.max_new_tokens,
                output_length=self.output_length,
            ),
            command=redacted(shlex.join(["fastmtp", *sys.argv[1:]])),
            baseline=baseline,
            api=api,
            api_key=self.api_key,
            tokenizer=tokenizer if self.tokenizer else None,
            time_limit=self.time_limit,
            timeout=self.timeout,
            retries=self.retries,
            seed=self.seed,
            repeats=self.repeats,
            rerun=self.rerun,
            side_by_side=self.side_by_side,
        )

    def _tokenizer(self, model: Model | None) -> Any:
        """Load --tokenizer, or what --shape needs to count prompt tokens."""
        if self.tokenizer is not None:
            return load_tokenizer(self.tokenizer, "--tokenizer")
        if not self.shape:
            return None
        if model is None:
            raise FastMTPError(
                "--shape with --endpoint: needs --tokenizer DIRECTORY, to count prompt tokens"
            )
        path = str(smollm2.checkpoint()) if model.name == smollm2.NAME else model.name
        return load_tokenizer(path, "--model")


def make_model(
    name: str, draft: str | None, num_steps: int | None, vocabulary: Path | None, flags: str
) -> Model:
    """Return what to serve, with --sglang-flags split as a shell does; raises FastMTPError."""
    try:
        return Model(name, draft, num_steps, vocabulary, tuple(shlex.split(flags)))
    except ValueError as error:
        raise FastMTPError(f"--sglang-flags {flags}: its quotes do not close ({error})") from error


def numbers(flag: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    """Read numbers above 0 between commas; raises FastMTPError naming `flag`."""
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not min(values) > 0:
        raise FastMTPError(f"{flag} {text}: give numbers above 0 between commas, such as 1,8,32")
    return list(dict.fromkeys(values))


def refuse_with_endpoint(options: dict[str, object]) -> None:
    """Refuse options that only servers started here could follow."""
    for name, value in options.items():
        if value:
            raise FastMTPError(f"{name} has no effect with --endpoint: those servers run already")
