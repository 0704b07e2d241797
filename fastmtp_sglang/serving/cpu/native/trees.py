"""Draft trees: linking the rows that are verified, and following the target through them.

A request has n rows, the root (the last token that was decided) first and every row after its
parent. `next_token` is a row's first child, `next_sibling` the next child of the same parent, -1
for none. Arrays are written in place.
"""

from numba import types

from fastmtp_sglang.serving.cpu.native.compiled import compiled

_line, _table = types.int64[::1], types.int64[:, ::1]
_small_line, _small_table = types.int32[::1], types.int32[:, ::1]


@compiled(
    types.void(_table, _table, _line, types.boolean[:, :, ::1], *[_table] * 4, types.int64),
)
def link(numbers, chosen, lengths, mask, positions, index, next_token, next_sibling, topk):
    """Link the drafts that are verified.

    Args:
        numbers: [requests, families]; the number of the draft whose children are a family, whose
            own numbers are family * topk onwards; those of family 0 follow the root.
        chosen: [requests, n - 1], ascending numbers of the drafts that are verified.
        lengths: [requests], tokens before the root.
        mask: bool [requests, n, n], which rows each row sees.
        positions: [requests, n], of the rows in their text.
        index: [requests, n], the number of each row in the batch.
        next_token: [requests, n].
        next_sibling: [requests, n].
        topk: drafts of a family.
    """
    requests, n = index.shape
    for r in range(requests):
        mask[r] = False
        for row in range(n):
            index[r, row] = r * n + row
            next_token[r, row] = next_sibling[r, row] = -1
            parent, linked = 0, True
            if row > 0:
                family = chosen[r, row - 1] // topk
                if family > 0:
                    # Of equally likely paths a draft may be chosen without its parent: nothing
                    # leads to it.
                    linked = False
                    for above in range(1, row):
                        if chosen[r, above - 1] == numbers[r, family]:
                            parent, linked = above, True
                # A loop: the assignment of a row takes two more seconds to compile.
                for seen in range(n):
                    mask[r, row, seen] = mask[r, parent, seen]
                positions[r, row] = positions[r, parent] + 1
            else:
                positions[r, row] = lengths[r]
            mask[r, row, row] = True
            if row == 0 or not linked:
                continue
            if next_token[r, parent] < 0:
                next_token[r, parent] = row
            else:
                sibling = next_token[r, parent]
                while next_sibling[r, sibling] >= 0:
                    sibling = next_sibling[r, sibling]
                next_sibling[r, sibling] = row


@compiled(types.void(*[_table] * 5, _small_table, _small_line))
def follow(candidates, target, index, next_token, next_sibling, accepted, count):
    """Accept a row's child as long as one of them is what the target says after that row.

    Args:
        candidates: [requests, n], tokens of the rows.
        target: [requests, n], the target's token after each row.
        index: [requests, n], the number of each row in the batch.
        next_token: [requests, n].
        next_sibling: [requests, n].
        accepted: int32 [requests, depth], numbers of the accepted rows, the root's first, then -1.
        count: int32 [requests], accepted drafts.
    """
    for r in range(len(accepted)):
        row, depth = 0, 0
        accepted[r] = -1
        accepted[r, 0] = index[r, 0]
        while depth + 1 < accepted.shape[1]:
            child = next_token[r, row]
            while child >= 0 and candidates[r, child] != target[r, row]:
                child = next_sibling[r, child]
            if child < 0:
                break
            row, depth = child, depth + 1
            accepted[r, depth] = index[r, row]
        count[r] = depth
