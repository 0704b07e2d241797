"""Where a decoding step's time goes: draft, verify and draft-extend beside a plain decode step.

Runs one `sglang.Engine` after the other on the same machine, without speculation and with FASTMTP,
and times the worker's stages inside the scheduler process. Prints a JSON line per batch size: the
median milliseconds of each stage, and verify / decode, the price of verification.

    python -m fastmtp_benchmarks.stages            # SmolLM2, K=3, batch 1 and 8
"""

from __future__ import annotations

import functools
import json
import os
import shlex
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from fastmtp_benchmarks.environment import save

_RECORDS = "FASTMTP_STAGE_RECORDS"
# Steps at the start of each run that are not counted: first calls allocate and warm caches.
_WARM_UP_STEPS = 5


def scheduler_process(*args: Any, **kwargs: Any) -> None:
    """SGLang's scheduler process with timers; started by `Engine` in a spawned process."""
    from sglang.srt.managers.scheduler import run_scheduler_process
    from sglang.srt.managers.tp_worker import TpModelWorker
    from sglang.srt.speculative.eagle_worker_v2 import EagleDraftWorker, EAGLEWorkerV2

    records = Path(os.environ[_RECORDS]).open("a", buffering=1)  # noqa: SIM115 (until the end)
    for owner, method, stage in (
        (EagleDraftWorker, "draft", "draft"),
        (EAGLEWorkerV2, "verify", "verify"),
        (EagleDraftWorker, "_draft_extend_for_decode", "draft_extend"),
        (TpModelWorker, "forward_batch_generation", "decode"),
    ):
        setattr(owner, method, _timed(getattr(owner, method), stage, records))
    run_scheduler_process(*args, **kwargs)


def _timed(method: Any, stage: str, records: Any) -> Any:
    @functools.wraps(method)
    def timed(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        # Prefill, and the target's forward pass inside verify, go through the same method.
        counted = batch is not None and (stage != "decode" or batch.forward_mode.is_decode())
        rows = len(batch.reqs) if counted else 0
        _synchronize()
        began = time.perf_counter()
        result = method(self, batch, *args, **kwargs)
        _synchronize()
        if counted:
            records.write(json.dumps([stage, rows, time.perf_counter() - began]) + "\n")
        return result

    return timed


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(
    model: str, flags: dict[str, Any], batch_sizes: list[int], tokens: int
) -> dict[int, dict[str, float]]:
    """Serve `model` with `flags` and time its stages.

    Args:
        model: a model directory.
        flags: keyword arguments of `sglang.Engine`.
        batch_sizes: numbers of requests that decode together, one run each.
        tokens: new tokens per request.

    Returns:
        Batch size -> stage -> median milliseconds.
    """
    from sglang.srt.entrypoints.engine import Engine

    class TimedEngine(Engine):
        run_scheduler_process_func = staticmethod(scheduler_process)

    with TemporaryDirectory() as folder:
        records = Path(folder) / "records.jsonl"
        os.environ[_RECORDS] = str(records)
        engine = TimedEngine(model_path=model, **flags)
        try:
            for size in batch_sizes:
                # 64 tokens of prompt, different per request.
                prompts = [[1000 + 64 * i + j for j in range(64)] for i in range(size)]
                sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
                engine.generate(input_ids=prompts, sampling_params=sampling)
        finally:
            engine.shutdown()
        times: dict[tuple[int, str], list[float]] = defaultdict(list)
        for line in records.read_text().splitlines():
            stage, rows, seconds = json.loads(line)
            times[rows, stage].append(seconds)
    return {
        size: {
            stage: round(1000 * statistics.median(seconds[_WARM_UP_STEPS:]), 2)
            for (rows, stage), seconds in times.items()
            if rows == size and len(seconds) > _WARM_UP_STEPS
        }
        for size in batch_sizes
    }


def main(
    model: Annotated[str, typer.Option(help="Model directory, or smollm2.")] = "smollm2",
    draft: Annotated[str | None, typer.Option(help="Head directory.")] = None,
    num_steps: Annotated[int, typer.Option(help="K, tokens drafted per step.")] = 3,
    batch_sizes: Annotated[str, typer.Option(help="Comma-separated.")] = "1,8",
    tokens: Annotated[int, typer.Option(help="New tokens per request.")] = 48,
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
        "log_level": "warning",
    }
    if model == smollm2.NAME:
        flags["dtype"] = "float32"
        draft = draft or str(smollm2.draft_head(num_steps).path)
        model = str(smollm2.checkpoint())
    baseline = measure(model, flags, sizes, tokens)
    speculation = {
        "speculative_algorithm": "FASTMTP",
        "speculative_num_steps": num_steps,
        "speculative_draft_model_path": draft,
    }
    rows = []
    for path in (None, *(vocabulary or ())):
        chosen = speculation if path is None else speculation | {"speculative_token_map": str(path)}
        fastmtp = measure(model, flags | chosen, sizes, tokens)
        for size in sizes:
            rows.append(
                {
                    "batch": size,
                    "vocabulary": path and path.name,
                    "milliseconds": baseline[size] | fastmtp[size],
                    "verify_over_decode": round(
                        fastmtp[size]["verify"] / baseline[size]["decode"], 3
                    ),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    result = {"model": Path(model).name, "num_steps": num_steps, "rows": rows}
    if output is not None:
        save(result, output, shlex.join(sys.argv))


if __name__ == "__main__":
    typer.run(main)
