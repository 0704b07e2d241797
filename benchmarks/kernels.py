"""The draft head's last layer against what else it could be: time, bytes read, share of a copy.

Needs torch and triton only; runs on any GPU, and on a CPU with the CPU implementation. Every
variant returns the best token id of each row, each over the same list; on a mixed batch the rows
take turns among the languages, and a variant that knows one list must run once per language.
Times are medians over passes that cycle through copies of the head larger than the last-level
cache, inside a CUDA graph on a GPU. GB/s counts each needed head row once; "of copy" divides by
what `copy_` reaches in the same run.

    python -m fastmtp_benchmarks.kernels --help
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmtp_benchmarks.environment import save
from fastmtp_kernels.draft_logits import DraftLogits, DraftOptions
from fastmtp_kernels.factory import make_draft_logits
from fastmtp_kernels.slots import DraftSlots

_SEED = 20250918
# The head of the next pass must not be in the cache: copies are made until they exceed this.
_CACHE_BYTES = {"cuda": 256 * 2**20, "cpu": 64 * 2**20}
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

Variant = Callable[[Tensor, Tensor], Tensor]


class Bench:
    """One head, its lists, and the variants over them.

    Lists model real ones: every language has its own frequent ids and they share a quarter.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        self.dtype = _DTYPES[args.dtype]
        self.vocab_size, self.width, self.size = args.vocab_size, args.width, args.list_size
        generator = torch.Generator().manual_seed(_SEED)
        shared = torch.randperm(self.vocab_size, generator=generator)
        own = self.size - self.size // 4
        self.lists = [
            torch.cat((shared[: self.size // 4], shared[start : start + own])).sort().values
            for start in (self.size // 4 + i * own for i in range(args.languages))
        ]
        if any(len(ids) < self.size for ids in self.lists):
            raise SystemExit(
                f"{args.languages} lists of {self.size} do not fit into {self.vocab_size} ids: "
                "lower --languages or --list-size"
            )
        head_bytes = self.vocab_size * self.width * self.dtype.itemsize
        list_bytes = self.size * self.width * self.dtype.itemsize
        copies = max(1, -(-_CACHE_BYTES[self.device.type] // list_bytes))
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info()[0]
            copies = min(copies, max(1, free // (4 * head_bytes)))
        self.heads = [
            torch.randn(self.vocab_size, self.width, device=self.device, dtype=self.dtype)
            for _ in range(min(copies, args.max_copies))
        ]
        names = [f"l{i}" for i in range(args.languages)]
        self.slots = DraftSlots.build(dict(zip(names, self.lists, strict=True)), self.vocab_size)
        self.full_slots = DraftSlots.build({"full": range(self.vocab_size)}, self.vocab_size)

    def variants(self, compiled: bool) -> dict[str, list[Variant]]:
        """Name -> one callable per copy of the head."""
        on_device = [ids.to(self.device) for ids in self.lists]

        def full(head: Tensor) -> Variant:
            return lambda hidden, _: (hidden @ head.T).argmax(dim=1)

        def stock(head: Tensor) -> Variant:
            hot = [head[ids] for ids in on_device]
            return self._by_language(
                lambda hidden, i: on_device[i][(hidden @ hot[i].T).argmax(dim=1)]
            )

        def select(head: Tensor) -> Variant:
            return self._by_language(
                lambda hidden, i: on_device[i][
                    (hidden @ head.index_select(0, on_device[i]).T).argmax(dim=1)
                ]
            )

        def compiled_stock(head: Tensor) -> Variant:
            hot = [head[ids] for ids in on_device]
            score = torch.compile(
                lambda hidden, rows: (hidden @ rows.T).argmax(dim=1), dynamic=False
            )
            return self._by_language(lambda hidden, i: on_device[i][score(hidden, hot[i])])

        made: dict[str, Callable[[Tensor], Variant]] = {
            "full head, matmul + argmax": full,
            "stock: cloned rows, matmul + argmax": stock,
            "rows selected each step": select,
        }
        if compiled:
            made["torch.compile of the stock path"] = compiled_stock
        made["ours, gathered" if self.device.type == "cuda" else "ours"] = self._ours(self.slots)
        if self.device.type == "cuda":
            made["ours, packed"] = self._ours(self.slots, packed=True)
        made["ours, full vocabulary"] = self._ours(self.full_slots, languages=False)
        return {name: [make(head) for head in self.heads] for name, make in made.items()}

    def _ours(
        self, slots: DraftSlots, *, packed: bool = False, languages: bool = True
    ) -> Callable[[Tensor], Variant]:
        def make(head: Tensor) -> Variant:
            logits: DraftLogits = make_draft_logits(head, slots, DraftOptions(), packed=packed)
            logits.warm_up()
            if languages:
                return lambda hidden, language: logits(hidden, language).ids[:, 0]
            return lambda hidden, language: logits(hidden, language * 0).ids[:, 0]

        return make

    def _by_language(self, one: Callable[[Tensor, int], Tensor]) -> Variant:
        """A variant that knows one list a call: one call per language of the batch."""

        def run(hidden: Tensor, language: Tensor) -> Tensor:
            # Rows take turns, so the split needs no read of `language` on the host.
            count = min(len(self.lists), hidden.shape[0]) if self.mixed else 1
            ids = torch.empty(hidden.shape[0], dtype=torch.int64, device=hidden.device)
            for i in range(count):
                ids[i::count] = one(hidden[i::count], i)
            return ids

        return run

    mixed = False

    def rows_read(self, name: str, batch: int) -> int:
        """Head rows that the variant cannot do without."""
        if "full" in name:
            return self.vocab_size
        if not self.mixed:
            return self.size
        used = self.lists[: min(batch, len(self.lists))]
        if name.startswith("ours"):
            return len(torch.cat(used).unique())
        return sum(len(ids) for ids in used)


def measure(runs: Sequence[Callable[[], Any]], device: torch.device, repeats: int) -> float:
    """Median seconds of one of `runs`, which are cycled through."""
    for run in runs:
        run()
    if device.type == "cuda":
        return _measure_graph(runs, repeats)
    times = []
    for run in itertools.islice(itertools.cycle(runs), repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _measure_graph(runs: Sequence[Callable[[], Any]], repeats: int) -> float:
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for run in runs:
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    times = []
    for _ in range(repeats + 3):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        graph.replay()
        ended.record()
        torch.cuda.synchronize()
        times.append(began.elapsed_time(ended) / 1000 / len(runs))
    return statistics.median(times[3:])


def copy_bandwidth(bench: Bench, repeats: int) -> float:
    """Bytes read and written per second by `copy_` of as many bytes as one list has."""
    elements = bench.size * bench.width
    sources = [head.flatten()[:elements] for head in bench.heads]
    target = torch.empty_like(sources[0])
    runs = [partial(target.copy_, source) for source in sources]
    seconds = measure(runs, bench.device, repeats)
    return 2 * elements * bench.dtype.itemsize / seconds


def _rows(bench: Bench, args: argparse.Namespace, bandwidth: float) -> list[dict[str, Any]]:
    variants = bench.variants(args.compile)
    rows = []
    for bench.mixed, batch in itertools.product((False, True), args.batch_sizes):
        if bench.mixed and batch == 1:
            continue
        hidden = torch.randn(batch, bench.width, device=bench.device, dtype=bench.dtype)
        count = min(len(bench.lists), batch) if bench.mixed else 1
        language = torch.arange(batch, device=bench.device) % count
        for name, per_head in variants.items():
            runs = [partial(run, hidden, language) for run in per_head]
            seconds = measure(runs, bench.device, args.repeats)
            read = bench.rows_read(name, batch) * bench.width * bench.dtype.itemsize
            rows.append(
                {
                    "batch": batch,
                    "languages": count,
                    "variant": name,
                    "microseconds": round(seconds * 1e6, 1),
                    "gigabytes_per_second": round(read / seconds / 1e9, 1),
                    "of_copy": round(read / seconds / bandwidth, 3),
                }
            )
            row = rows[-1]
            print(
                f"{batch:4d} rows {count} lang.  {name:36s} {row['microseconds']:9.1f} us "
                f"{row['gigabytes_per_second']:8.1f} GB/s {row['of_copy']:7.1%} of copy",
                flush=True,
            )
    return rows


def main() -> None:
    """Measure and print; write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--dtype", default="bf16" if has_gpu else "fp32", choices=_DTYPES)
    parser.add_argument("--vocab-size", type=int, default=152064 if has_gpu else 49152)
    parser.add_argument("--width", type=int, default=4096 if has_gpu else 576)
    parser.add_argument("--list-size", type=int, default=32768 if has_gpu else 16384)
    parser.add_argument("--languages", type=int, default=3, help="lists of a mixed batch")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--repeats", type=int, default=31)
    parser.add_argument("--max-copies", type=int, default=8)
    parser.add_argument("--compile", action="store_true", help="also torch.compile (needs g++)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    with torch.no_grad():
        bench = Bench(args)
        bandwidth = copy_bandwidth(bench, args.repeats)
        print(f"copy: {bandwidth / 1e9:.1f} GB/s read and written")
        rows = _rows(bench, args, bandwidth)
    if args.output is not None:
        result = {
            "shape": {"vocab_size": bench.vocab_size, "width": bench.width, "dtype": args.dtype},
            "list_size": bench.size,
            "copy_gigabytes_per_second": round(bandwidth / 1e9, 1),
            "rows": rows,
        }
        save(result, args.output, shlex.join(sys.argv))


if __name__ == "__main__":
    main()
