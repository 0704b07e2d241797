"""Random attention batches, shared by test_attention.py and the process that it starts.

Run as a script with a seed, a number of cases and a dtype it computes the same rows in several ways
and prints one JSON object: {way: [rows compared, rows whose bits differ]}. It needs a process of
its own, since MKL reads MKL_CBWR at its first product.
"""

import json
import sys
from dataclasses import dataclass
from types import ModuleType

import torch

GROUPS, HEAD_SIZES, KEY_HEADS = (1, 3, 4), (16, 64, 80), (1, 2, 3)
WINDOWS = (-1, -1, 0, 7, 100)
# Keys that the first row of a request sees: on both sides of the paddings, of the buckets, and of
# the blocks in which MKL and torch sum (192, 384 and 512 keys).
LENGTHS = (1, 2, 5, 15, 16, 17, 31, 60, 64, 65, 127, 129, 190, 193, 256, 300, 380, 385, 511, 810)
CONTEXT = 1000


@dataclass
class Cache:
    """A KV cache whose request table is full: past the end of a request lie other keys."""

    req_to_token: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    group: int
    scale: float


def choose(generator: torch.Generator, options: tuple[int, ...]) -> int:
    return options[int(torch.randint(len(options), (), generator=generator))]


def random_cache(generator: torch.Generator, requests: int) -> Cache:
    """A cache of `requests` requests; the padding slot 0 holds huge numbers."""
    group, size = choose(generator, GROUPS), choose(generator, HEAD_SIZES)
    heads = choose(generator, KEY_HEADS)
    slots = requests * CONTEXT
    table = torch.randperm(slots, generator=generator).add(1).view(requests, CONTEXT)
    keys = torch.randn(slots + 1, heads, size, generator=generator)
    values = torch.randn(slots + 1, heads, size, generator=generator)
    keys[0] *= 1e4
    values[0] *= 1e30
    return Cache(table.to(torch.int32), keys, values, group, size**-0.5)


def random_query(generator: torch.Generator, cache: Cache, rows: int) -> torch.Tensor:
    heads, size = cache.keys.shape[1:]
    return torch.randn(rows, heads * cache.group, size, generator=generator)


def uniform(
    cache: Cache, requests: list[int], lengths: list[int], query: torch.Tensor, window: int
) -> torch.Tensor:
    """The last n rows of each request through `plan_uniform`; query [bs * n, heads, size]."""
    from fastmtp_sglang.serving.cpu.attention import plan_uniform

    n = query.shape[0] // len(requests)
    visible = torch.tensor(lengths).unsqueeze(1) + torch.arange(1 - n, 1)
    calls = plan_uniform(cache.req_to_token, torch.tensor(requests), visible)
    return _run(calls, cache, query, window)


def prefill(
    cache: Cache,
    requests: list[int],
    prefixes: list[int],
    extends: list[int],
    query: torch.Tensor,
    window: int,
) -> torch.Tensor:
    """Rows appended to prefixes through `plan_prefill`; query [sum(extends), heads, size]."""
    from fastmtp_sglang.serving.cpu.attention import plan_prefill

    calls = plan_prefill(cache.req_to_token, torch.tensor(requests), prefixes, extends)
    return _run(calls, cache, query, window)


def _run(calls: list, cache: Cache, query: torch.Tensor, window: int) -> torch.Tensor:
    from fastmtp_sglang.serving.cpu.attention import attend

    # A row that no call writes stays NaN and fails every comparison.
    output = torch.full_like(query, float("nan"))
    for call in calls:
        attend(call, query, cache.keys, cache.values, output, scale=cache.scale, window=window)
    return output


def differing_rows(seed: int, cases: int) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    counts: dict[str, list[int]] = {}
    for _ in range(cases):
        for way, one, other in _ways(generator):
            compared = counts.setdefault(way, [0, 0])
            compared[0] += len(one)
            compared[1] += int((one != other).flatten(1).any(1).sum())
    return counts


def _ways(generator: torch.Generator) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """One random batch: each row decoded alone against the same row computed otherwise."""
    bs, n = choose(generator, (1, 2, 3, 5, 8)), choose(generator, (1, 2, 3, 4, 5, 6, 7, 8))
    window = choose(generator, WINDOWS)
    cache = random_cache(generator, bs)
    requests = torch.randperm(bs, generator=generator).tolist()
    lengths = [n - 1 + choose(generator, LENGTHS) for _ in range(bs)]
    query = random_query(generator, cache, bs * n)

    rows = query.view(bs, n, *query.shape[1:])
    alone, verified = [], []
    for i, (request, length) in enumerate(zip(requests, lengths, strict=True)):
        verified.append(uniform(cache, [request], [length], rows[i], window))
        for j in range(n):
            seen = length - n + 1 + j
            alone.append(uniform(cache, [request], [seen], rows[i, j : j + 1], window))
    decoded = torch.cat(alone)
    prefixes = [length - n for length in lengths]
    ways = [
        ("verified alone", decoded, torch.cat(verified)),
        ("verified in a batch", decoded, uniform(cache, requests, lengths, query, window)),
        (
            "decoded in a batch",
            decoded.view_as(rows)[:, -1],
            uniform(cache, requests, lengths, rows[:, -1].contiguous(), window),
        ),
        (
            "appended to a prefix",
            decoded,
            prefill(cache, requests, prefixes, [n] * bs, query, window),
        ),
        *_prefill_ways(generator, cache, requests[0], lengths[0], window),
    ]
    # Other garbage in the padding slot and past the end of each request.
    cache.keys[0] *= -1
    cache.values[0] *= -1
    for request, length in zip(requests, lengths, strict=True):
        cache.req_to_token[request, length:] = 1
    ways.append(("other padding", decoded, uniform(cache, requests, lengths, query, window)))
    return ways


def _prefill_ways(
    generator: torch.Generator, cache: Cache, request: int, length: int, window: int
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    query = random_query(generator, cache, length)
    whole = prefill(cache, [request], [0], [length], query, window)
    cut = int(torch.randint(length, (), generator=generator))
    chunks = [
        prefill(cache, [request], [0], [cut], query[:cut], window),
        prefill(cache, [request], [cut], [length - cut], query[cut:], window),
    ]
    some = torch.randint(length, (6,), generator=generator).tolist()
    decoded = [uniform(cache, [request], [row + 1], query[row : row + 1], window) for row in some]
    return [
        ("prefilled in chunks", whole, torch.cat(chunks)),
        ("prefilled", torch.cat(decoded), whole[some]),
    ]


def _without_sglang() -> None:
    """Stand-ins for the base classes of the backend, whose import takes ten seconds."""
    for module, name in (
        ("sglang.srt.layers.attention.base_attn_backend", "AttentionBackend"),
        ("sglang.srt.layers.radix_attention", "AttentionType"),
        ("sglang.srt.mem_cache.memory_pool", "KVWriteLoc"),
    ):
        sys.modules[module] = ModuleType(module)
        setattr(sys.modules[module], name, type(name, (), {}))


if __name__ == "__main__":
    _without_sglang()
    torch.set_default_dtype(getattr(torch, sys.argv[3]))
    print(json.dumps(differing_rows(seed=int(sys.argv[1]), cases=int(sys.argv[2]))))
