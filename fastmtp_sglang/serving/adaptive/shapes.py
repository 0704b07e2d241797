"""Which shapes `--speculative-adaptive` chooses among: what the flags name, and less of it.

Plain decoding and every chain up to K. For a tree, of the same top-k (so that what was drafted for
one of them says what any smaller one would have drafted): all, half and a quarter of its rows, at
depths K, K/2 and 1. Fewer rows are for larger batches, fewer steps for heads that are rarely right
twice. Those of many rows are not tried at depth 1, nor those of few at depth K: they are worse than
their neighbours wherever it was measured (docs/algorithm.md).
"""

from __future__ import annotations

from fastmtp_sglang.contract.tree_shape import PLAIN, TreeShape


def candidate_shapes(largest: TreeShape) -> tuple[TreeShape, ...]:
    """Return the shapes, `PLAIN` first and `largest` last.

    Args:
        largest: what `--speculative-num-steps`, `--speculative-eagle-topk` and
            `--speculative-num-draft-tokens` name.
    """
    deep, top_k, rows = largest.num_steps, largest.top_k, largest.num_rows
    half = (deep + 1) // 2
    chains = [TreeShape.of(steps) for steps in range(1, deep + 1)]
    trees = [
        TreeShape(steps, top_k, kept)
        for steps, kept in (
            *((1, min(1 + top_k, rows // 2)), (half, rows // 4), (half, rows // 2)),
            *((half, rows), (deep, rows)),
        )
        # Two rows are the chain of one step.
        if top_k > 1 and max(steps + 1, 3) <= kept <= 1 + TreeShape.of(steps, top_k).num_drafts
    ]
    return tuple(dict.fromkeys((PLAIN, *chains, *trees, largest)))
