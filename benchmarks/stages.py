"""Where a decoding step's time goes: draft, verify and draft-extend beside a plain decode step.

Runs one `sglang.Engine` after the other, without speculation and with FASTMTP, and times the
worker's stages inside the scheduler process, on questions, in the target's chat template where it
has one. Prints a JSON line per batch size: the median milliseconds of each stage (draft_head: the
last layer of one draft step), verify / decode, the price of verification, acceptance length,
tokens/s end to end.

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
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from fastmtp_benchmarks.environment import save
from fastmtp_sglang.models.prompting import prompt_ids

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

    from fastmtp_sglang.serving.drafting.draft_head import DraftLogitsProcessor

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


@dataclass
class _Measured:
    """What the runs of one configuration gave, by batch size."""

    speeds: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    counters: dict[int, tuple[int, int]] = field(default_factory=dict)
    # By rows and stage.
    seconds: dict[tuple[int, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self, model: str, flags: dict[str, Any], batch_sizes: list[int], tokens: int) -> None:
        """Serve `model` with `flags`, keyword arguments of `sglang.Engine`, and time its stages.

        `tokens` are generated for each request; a run is as many requests as a batch size says.
        """
        from sglang.srt.entrypoints.engine import Engine

        class TimedEngine(Engine):
            run_scheduler_process_func = staticmethod(scheduler_process)

        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        with TemporaryDirectory() as folder:
            records = Path(folder) / "records.jsonl"
            os.environ[_RECORDS] = str(records)
            engine = TimedEngine(model_path=model, **flags)
            try:
                for size in batch_sizes:
                    prompts = _prompts(engine.tokenizer_manager.tokenizer, size)
                    engine.generate(input_ids=prompts, sampling_params=sampling)
                    began = time.perf_counter()
                    answers = engine.generate(input_ids=prompts, sampling_params=sampling)
                    self.speeds[size].append(size * tokens / (time.perf_counter() - began))
                    meta = [answer["meta_info"] for answer in answers]
                    verified = sum(one.get("spec_verify_ct", 0) for one in meta)
                    accepted = sum(one.get("spec_num_correct_drafts", 0) for one in meta)
                    # SGLang's own algorithms count drafts behind the end of an answer too.
                    emitted = min(accepted, max(size * (tokens - 1) - verified, 0))
                    self.counters[size] = emitted, verified
            finally:
                engine.shutdown()
            times: dict[tuple[int, str], list[float]] = defaultdict(list)
            for line in records.read_text().splitlines():
                stage, rows, seconds = json.loads(line)
                times[rows, stage].append(seconds)
        for key, all_seconds in times.items():
            self.seconds[key] += all_seconds[_WARM_UP_STEPS:]

    def result(self, size: int) -> dict[str, float]:
        """Return stage -> median milliseconds at a batch size.

        Also the median "tokens_per_second", with prefill, and "acceptance_length" where drafts were
        verified.
        """
        result = {
            stage: round(1000 * statistics.median(seconds), 2)
            for (rows, stage), seconds in self.seconds.items()
            if rows == size and seconds
        }
        result["tokens_per_second"] = round(statistics.median(self.speeds[size]), 2)
        accepted, verified = self.counters[size]
        if verified:
            result["acceptance_length"] = round(1 + accepted / verified, 3)
        return result


def _prompts(tokenizer: Any, count: int) -> list[list[int]]:
    questions = itertools.cycle(q.format(s) for q in _QUESTIONS for s in _SUBJECTS)
    chosen = list(itertools.islice(questions, count))
    return [prompt_ids(tokenizer, [{"role": "user", "content": text}]) for text in chosen]


def main(
    model: Annotated[str, typer.Option(help="Model directory, or built-in model.")] = "smollm2",
    draft: Annotated[str | None, typer.Option(help="Head directory.")] = None,
    num_steps: Annotated[int, typer.Option(help="K, tokens drafted per step.")] = 3,
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,8",
    tokens: Annotated[int, typer.Option(help="New tokens per request.")] = 48,
    adaptive: Annotated[
        bool, typer.Option("--adaptive", help="Measure --speculative-adaptive too, 0 to K steps.")
    ] = False,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds over all configurations; medians are of all.")
    ] = 1,
    vocabulary: Annotated[
        list[Path] | None, typer.Option(help="Draft vocabulary to measure too; repeatable.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time the stages of decoding with and without FASTMTP."""
    from fastmtp_sglang.models import catalog

    sizes = [int(size) for size in batch_sizes.split(",")]
    flags: dict[str, Any] = {
        "max_total_tokens": 16384,
        "disable_radix_cache": True,
        "log_level": "warning",
    }
    if (ours := catalog.find(model)) is not None:
        flags["dtype"] = "float32"
        draft = draft or str(ours.draft_head(num_steps).path)
        model = str(ours.checkpoint())
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
    measured = {name: _Measured() for name in configurations}
    for _ in range(rounds):
        for name, chosen in configurations.items():
            measured[name].run(model, flags | chosen, sizes, tokens)
    baseline = measured.pop("baseline")
    rows = []
    for name, fastmtp in measured.items():
        for size in sizes:
            alone, with_drafts = baseline.result(size), fastmtp.result(size)
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
