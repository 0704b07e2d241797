"""Where a decoding step's time goes: draft, verify and draft-extend beside a plain decode step.

Runs one `sglang.Engine` after the other, or in turns, without speculation and with FASTMTP, and
times the worker's stages inside the scheduler process, on questions in the target's chat template.
Prints a JSON line per batch size: the median milliseconds of each stage (draft_head: the last layer
of one draft step), verify / decode, the price of verification, acceptance length, and tokens/s end
to end.

    python -m fastmtp_benchmarks.stages            # SmolLM2, K=3, batch 1 and 8
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Self

import typer

from fastmtp_benchmarks.environment import save

_RECORDS = "FASTMTP_STAGE_RECORDS"
# Steps at the start of each run that are not counted: first calls allocate and warm caches.
_WARM_UP_STEPS = 5
_SUBJECTS = ("rain", "bread", "gravity", "music", "trade", "volcanoes", "sleep", "bridges")
_QUESTIONS = ("Explain how {} works.", "Write a short story about {}.", "List facts about {}.")


def scheduler_process(*args: Any, **kwargs: Any) -> None:
    """SGLang's scheduler process with timers; started by `Engine` in a spawned process."""
    from sglang.srt.layers.logits_processor import LogitsProcessor
    from sglang.srt.managers.scheduler import run_scheduler_process
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker, EAGLEWorkerV2

    from fastmtp_sglang.draft_head import DraftLogitsProcessor

    timers = _Timers(Path(os.environ[_RECORDS]))
    for owner, method, stage in (
        (EagleDraftWorker, "draft", "draft"),
        (EAGLEWorkerV2, "verify", "verify"),
        (EagleDraftWorker, "_draft_extend_for_decode", "draft_extend"),
    ):
        timers.add(owner, method, stage, lambda _, batch: len(batch.reqs))
    # The target's forward pass inside verify goes through the same method, without a batch.
    timers.add(
        TpModelWorker,
        "forward_batch_generation",
        "decode",
        lambda _, batch: len(batch.reqs) if batch and batch.forward_mode.is_decode() else 0,
    )
    for owner in (LogitsProcessor, DraftLogitsProcessor):
        timers.add(
            owner,
            "_get_logits",
            "draft_head",
            lambda _, hidden: len(hidden) if "draft" in timers.running else 0,
        )
    run_scheduler_process(*args, **kwargs)


class _Timers:
    """Wraps methods so that each call appends [stage, rows, seconds] to a file."""

    def __init__(self, path: Path) -> None:
        self.running: list[str] = []
        self._records = path.open("a", buffering=1)

    def add(self, owner: type, name: str, stage: str, rows_of: Callable[..., int]) -> None:
        """Time `owner.name` where `rows_of(self, first argument or batch)` is not 0."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(instance: Any, *args: Any, **kwargs: Any) -> Any:
            rows = rows_of(instance, args[0] if args else kwargs.get("batch"))
            if not rows or stage in self.running:
                return method(instance, *args, **kwargs)
            self.running.append(stage)
            _synchronize()
            began = time.perf_counter()
            try:
                return method(instance, *args, **kwargs)
            finally:
                _synchronize()
                seconds = time.perf_counter() - began
                self.running.remove(stage)
                self._records.write(json.dumps([stage, rows, seconds]) + "\n")

        setattr(owner, name, timed)


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class _TimedEngine:
    """An engine whose stages are timed, and what was measured with it."""

    def __init__(self, model: str, flags: dict[str, Any]) -> None:
        """Start it; `flags` are keyword arguments of `sglang.Engine`."""
        from sglang.srt.entrypoints.engine import Engine

        class TimedEngine(Engine):
            run_scheduler_process_func = staticmethod(scheduler_process)

        self._folder = TemporaryDirectory()
        self._records = Path(self._folder.name) / "records.jsonl"
        os.environ[_RECORDS] = str(self._records)
        self._speeds: dict[int, list[float]] = defaultdict(list)
        self._counters: dict[int, tuple[int, int]] = {}
        self._engine = TimedEngine(model_path=model, **flags)

    def run(self, size: int, tokens: int) -> None:
        """Let `size` requests of `tokens` new tokens decode together."""
        prompts = _prompts(self._engine.tokenizer_manager.tokenizer, size)
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        if size not in self._speeds:
            self._engine.generate(input_ids=prompts, sampling_params=sampling)
        began = time.perf_counter()
        answers = self._engine.generate(input_ids=prompts, sampling_params=sampling)
        self._speeds[size].append(size * tokens / (time.perf_counter() - began))
        meta = [answer["meta_info"] for answer in answers]
        self._counters[size] = (
            sum(one.get("spec_num_correct_drafts", 0) for one in meta),
            sum(one.get("spec_verify_ct", 0) for one in meta),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._engine.shutdown()
        self._folder.cleanup()

    def result(self) -> dict[int, dict[str, float]]:
        """Return what the runs gave.

        Batch size -> stage -> median milliseconds; also the median "tokens_per_second", with
        prefill, and "acceptance_length" where drafts were verified.
        """
        times: dict[tuple[int, str], list[float]] = defaultdict(list)
        for line in self._records.read_text().splitlines():
            stage, rows, seconds = json.loads(line)
            times[rows, stage].append(seconds)
        result: dict[int, dict[str, float]] = {}
        for size, speeds in self._speeds.items():
            result[size] = {
                stage: round(1000 * statistics.median(seconds[_WARM_UP_STEPS:]), 2)
                for (rows, stage), seconds in times.items()
                if rows == size and len(seconds) > _WARM_UP_STEPS
            }
            result[size]["tokens_per_second"] = round(statistics.median(speeds), 2)
            accepted, verified = self._counters[size]
            if verified:
                result[size]["acceptance_length"] = round(1 + accepted / verified, 3)
        return result


def measure(
    model: str,
    configurations: list[dict[str, Any]],
    batch_sizes: list[int],
    tokens: int,
    rounds: int,
    *,
    together: bool,
) -> list[dict[int, dict[str, float]]]:
    """Time each configuration; `together` runs all servers at once and lets them take turns."""
    if not together:
        single = [[one] for one in configurations]
        return [
            measure(model, one, batch_sizes, tokens, rounds, together=True)[0] for one in single
        ]
    with ExitStack() as stack:
        engines = [stack.enter_context(_TimedEngine(model, flags)) for flags in configurations]
        for _ in range(rounds):
            for size in batch_sizes:
                for engine in engines:
                    engine.run(size, tokens)
        return [engine.result() for engine in engines]


def _prompts(tokenizer: Any, count: int) -> list[list[int]]:
    questions = itertools.cycle(q.format(s) for q in _QUESTIONS for s in _SUBJECTS)
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for question in itertools.islice(questions, count)
    ]


def main(
    model: Annotated[str, typer.Option(help="Model directory, or smollm2.")] = "smollm2",
    draft: Annotated[str | None, typer.Option(help="Head directory.")] = None,
    num_steps: Annotated[int, typer.Option(help="K, tokens drafted per step.")] = 3,
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,8",
    tokens: Annotated[int, typer.Option(help="New tokens per request.")] = 48,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="Measure --speculative-adaptive too, 0 to K steps.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each, after a warm-up.")] = 1,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="All servers at once, in turns: fair where the machine's speed wanders, but needs "
            "the memory of all.",
        ),
    ] = False,
    vocabulary: Annotated[
        list[Path] | None, typer.Option(help="Draft vocabulary to measure too; repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time the stages of decoding with and without FASTMTP."""
    from fastmtp_sglang import smollm2

    sizes = [int(size) for size in batch_sizes.split(",")]
    flags: dict[str, Any] = {
        "max_total_tokens": 16384,
        "disable_radix_cache": True,
        "sleep_on_idle": True,  # those that wait for their turn
        "log_level": "warning",
    }
    if model == smollm2.NAME:
        flags["dtype"] = "float32"
        draft = draft or str(smollm2.draft_head(num_steps).path)
        model = str(smollm2.checkpoint())
    speculation = {
        "speculative_algorithm": "FASTMTP",
        "speculative_num_steps": num_steps,
        "speculative_draft_model_path": draft,
    }
    configurations: dict[str, dict[str, Any]] = {"baseline": {}, "fastmtp": speculation}
    for path in vocabulary or ():
        configurations[path.name] = speculation | {"speculative_token_map": str(path)}
    if adaptive:
        configurations["adaptive"] = speculation | {"speculative_adaptive": True}
    engines = [flags | chosen for chosen in configurations.values()]
    baseline, *measured = measure(model, engines, sizes, tokens, rounds, together=together)
    rows = []
    for name, fastmtp in zip(list(configurations)[1:], measured, strict=True):
        for size in sizes:
            alone = dict(baseline[size])
            with_drafts = dict(fastmtp[size])
            speed, bare = with_drafts.pop("tokens_per_second"), alone.pop("tokens_per_second")
            rows.append(
                {
                    "configuration": name,
                    "batch": size,
                    "acceptance_length": with_drafts.pop("acceptance_length"),
                    "milliseconds": alone | with_drafts,
                    "verify_over_decode": round(with_drafts["verify"] / alone["decode"], 3),
                    "tokens_per_second": {"baseline": bare, name: speed},
                    "speedup": round(speed / bare, 3),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    result = {"model": Path(model).name, "num_steps": num_steps, "rows": rows}
    if output is not None:
        save(result, output, shlex.join(sys.argv))


if __name__ == "__main__":
    typer.run(main)
