"""Trees on a CPU against trees of Python objects, built from the drafts that SGLang organizes.

Random trees come from fixed seeds. Alone: pytest tests/serving/cpu/test_tree.py
"""

import itertools
from dataclasses import dataclass, field

import pytest
import torch
from scipy.stats import chisquare

from fastmtp_sglang.serving.cpu import tree

SHAPES = [
    (1, 1, 2),
    (3, 1, 4),
    (1, 4, 4),
    (2, 2, 5),
    (3, 4, 12),
    (3, 8, 16),
    (5, 8, 48),
    (4, 8, 64),
]
VOCAB = 40


@dataclass
class Node:
    """A draft: its token, and what was drafted after it and is verified."""

    row: int
    token: int
    depth: int
    above: tuple[int, ...] = ()
    children: list["Node"] = field(default_factory=list)


@dataclass
class Trees:
    """Trees of bs requests as SGLang holds them, and as nodes."""

    seq_lens: torch.Tensor
    candidates: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    index: torch.Tensor
    next_token: torch.Tensor
    next_sibling: torch.Tensor
    roots: list[Node]


def drafted(bs: int, shape: tuple[int, int, int], source: torch.Generator) -> Trees:
    """Draft with SGLang's own functions from random shares of random tokens, then build."""
    from sglang.srt.speculative import spec_utils
    from sglang.srt.speculative.eagle_utils import organize_draft_results

    num_steps, topk, n = shape
    later = spec_utils._select_top_k_tokens_later
    later = getattr(later, "_torchdynamo_orig_callable", later)
    # Token ids by (request, path), to build the same tree from.
    scores, lists = None, ([], [], [])
    for step in range(num_steps):
        rows = bs if step == 0 else bs * topk
        shares = torch.rand(rows, topk, generator=source).softmax(1)
        tokens = torch.stack([torch.randperm(VOCAB, generator=source)[:topk] for _ in range(rows)])
        hidden = torch.zeros(rows, 1)
        if step == 0:
            select = spec_utils._select_top_k_tokens_first(shares, tokens, hidden, topk)
        else:
            select = later(step, shares, tokens, hidden, scores, topk)
        _, _, scores, info = select
        for values, value in zip(lists, info, strict=True):
            values.append(value)
    parents, chosen, drafts = organize_draft_results(*lists, n)
    seq_lens = torch.randint(1, 50, (bs,), generator=source)
    root_tokens = torch.randint(VOCAB, (bs, 1), generator=source)
    mask = torch.ones(bs * n * n, dtype=torch.bool)
    positions = torch.full((bs * n,), -1)
    index, following, sibling = (torch.full((bs, n), -1) for _ in range(3))
    tree.build_tree(
        parents, chosen, seq_lens.int(), mask, positions, index, following, sibling,
        topk, num_steps, n, None,
    )  # fmt: skip
    candidates = torch.cat((root_tokens, drafts), 1)
    roots = [
        _nodes(candidates[i].tolist(), chosen[i].tolist(), parents[i].tolist(), topk)
        for i in range(bs)
    ]
    return Trees(seq_lens, candidates, mask.view(bs, n, n), positions.view(bs, n), index, following,
                 sibling, roots)  # fmt: skip


def _nodes(tokens: list[int], chosen: list[int], parents: list[int], topk: int) -> Node:
    root = Node(0, tokens[0], 0)
    by_number: dict[int, Node] = {}
    for row, number in enumerate(chosen, 1):
        family = number // topk
        parent = root if family == 0 else by_number[parents[family]]
        node = Node(row, tokens[row], parent.depth + 1, (*parent.above, parent.row))
        parent.children.append(node)
        by_number[number] = node
    return root


def walk(node: Node):
    yield node
    for child in node.children:
        yield from walk(child)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bs", [1, 5])
def test_links_positions_and_masks(shape, bs):
    source = torch.Generator().manual_seed(bs)
    n = shape[2]
    built = drafted(bs, shape, source)
    assert built.index.flatten().tolist() == list(range(bs * n))
    for request, root in enumerate(built.roots):
        nodes = list(walk(root))
        assert len(nodes) == n
        for node in nodes:
            assert built.positions[request, node.row] == built.seq_lens[request] + node.depth
            seen = built.mask[request, node.row].nonzero().flatten().tolist()
            assert seen == [*node.above, node.row]
            children, child = [], int(built.next_token[request, node.row])
            while child != -1:
                children.append(child)
                child = int(built.next_sibling[request, child])
            assert children == [c.row for c in node.children]


def test_a_draft_whose_parent_is_not_verified_is_reached_by_nothing():
    """Equally likely paths: SGLang may take a draft and leave out what it follows."""
    mask, positions = torch.ones(9, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    index, following, sibling = (torch.full((1, 3), -7) for _ in range(3))
    # Top-k 2: draft 4 follows draft 1, which is not there; draft 0 is.
    tree.build_tree(
        torch.tensor([[-1, 0, 1]]), torch.tensor([[0, 4]]), torch.tensor([5]), mask, positions,
        index, following, sibling, 2, 2, 3, None,
    )  # fmt: skip
    assert following.tolist() == [[1, -1, -1]]
    assert sibling.tolist() == [[-1, -1, -1]]
    assert mask.view(3, 3).long().tolist() == [[1, 0, 0], [1, 1, 0], [1, 0, 1]]


def outputs(bs: int, n: int, num_steps: int) -> tuple[torch.Tensor, ...]:
    """predicts, accept_index and accept_token_num as SGLang allocates them."""
    return (
        torch.zeros(bs * n, dtype=torch.int32),
        torch.full((bs, num_steps + 1), -1, dtype=torch.int32),
        torch.empty(bs, dtype=torch.int32),
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_verification_follows_the_target(shape):
    """Half of the rows' targets are one of their drafts."""
    source = torch.Generator().manual_seed(3)
    bs, (num_steps, _, n) = 20, shape
    built = drafted(bs, shape, source)
    target = torch.randint(VOCAB, (bs, n), generator=source)
    for request, root in enumerate(built.roots):
        for node in walk(root):
            if node.children and torch.rand((), generator=source) < 0.7:
                pick = int(torch.randint(len(node.children), (), generator=source))
                target[request, node.row] = node.children[pick].token
    predicts, accept_index, counts = tree.verify_tree_greedy(
        *outputs(bs, n, num_steps), built.candidates, built.index, built.next_token,
        built.next_sibling, target,
    )  # fmt: skip
    assert counts.max() > 0
    for request, root in enumerate(built.roots):
        path, node = [0], root
        while node is not None:
            wanted = int(target[request, node.row])
            node = next((c for c in node.children if c.token == wanted), None)
            if node is not None:
                path.append(node.row)
        assert counts[request] == len(path) - 1
        kept = [request * n + row for row in path]
        assert accept_index[request].tolist() == kept + [-1] * (num_steps + 1 - len(kept))
        for row in path:
            assert predicts[request * n + row] == target[request, row]


def test_lone_rows_of_steps_without_drafts():
    """SGLang holds their tokens in 32 bits."""
    none = torch.full((3, 1), -1)
    predicts, accept_index, counts = tree.verify_tree_greedy(
        *outputs(3, 1, 0), torch.tensor([[7], [8], [9]], dtype=torch.int32),
        torch.arange(3).view(3, 1), none, none, torch.tensor([[4], [5], [6]]),
    )  # fmt: skip
    assert (predicts.tolist(), counts.tolist()) == ([4, 5, 6], [0, 0, 0])
    assert accept_index.tolist() == [[0], [1], [2]]


def sample(built: Trees, probs: torch.Tensor, num_steps: int, source: torch.Generator, trials: int):
    """Tokens emitted by `trials` verifications of the same tree."""
    n, emitted = built.index.shape[1], []
    repeat = [t.repeat(trials, 1) for t in (built.candidates, built.next_token, built.next_sibling)]
    predicts, accept_index, counts = outputs(trials, n, num_steps)
    tree.sample_tree_target_only(
        predicts=predicts,
        accept_index=accept_index,
        accept_token_num=counts,
        candidates=repeat[0],
        retrive_index=torch.arange(trials * n).view(trials, n),
        retrive_next_token=repeat[1],
        retrive_next_sibling=repeat[2],
        uniform_samples=torch.rand(trials, n, generator=source),
        uniform_samples_for_final_sampling=torch.rand(trials, generator=source),
        target_probs=probs.repeat(trials, 1, 1),
        draft_probs=torch.zeros(trials, n, VOCAB),
        threshold_single=1.0,
        threshold_acc=1.0,
        deterministic=True,
    )
    for row in range(trials):
        kept = accept_index[row][: counts[row] + 1].long()
        assert (kept >= 0).all()
        assert (accept_index[row][counts[row] + 1 :] == -1).all()
        emitted.append(tuple(predicts[kept].tolist()))
    return emitted


@pytest.mark.parametrize("shape", [(3, 1, 4), (2, 3, 8), (3, 4, 16)])
def test_every_emitted_token_follows_the_target(shape):
    """Siblings compete: whichever of them is drafted, each token comes as often as it should."""
    source = torch.Generator().manual_seed(11)
    built = drafted(1, shape, source)
    n, num_steps = shape[2], shape[0]
    probs = torch.rand(1, n, VOCAB, generator=source).mul(3).softmax(2)
    for node in walk(built.roots[0]):  # drafts are likely
        tokens = [child.token for child in node.children]
        probs[0, node.row, tokens] *= 60 / max(len(tokens), 1)
    probs /= probs.sum(2, keepdim=True)
    emitted = sample(built, probs, num_steps, source, trials=8_000)
    checked = 0
    for node in walk(built.roots[0]):
        path = [next(x for x in walk(built.roots[0]) if x.row == row).token for row in node.above]
        before = (*path, node.token)[1:]
        after = [
            e[len(before)] for e in emitted if e[: len(before)] == before and len(e) > len(before)
        ]
        if len(after) < 400:
            continue
        counts = torch.tensor(after).bincount(minlength=VOCAB)
        expected = probs[0, node.row].double()
        pvalue = chisquare(counts, expected * len(after) / expected.sum()).pvalue
        assert pvalue > 1e-4, (node, pvalue)
        checked += 1
    assert checked >= 3


def test_a_draft_that_is_certain_is_accepted_and_one_that_cannot_be_never():
    source = torch.Generator().manual_seed(5)
    built = drafted(1, (2, 2, 5), source)
    root = built.roots[0]
    probs = torch.zeros(1, 5, VOCAB)
    probs[:, :, VOCAB - 1] = 1.0
    probs[0, 0] = torch.nn.functional.one_hot(torch.tensor(root.children[1].token), VOCAB)
    drafts = {node.token for node in walk(root.children[1])} - {root.children[1].token}
    if VOCAB - 1 in drafts:
        pytest.fail("choose another seed: the token that follows is drafted")
    emitted = sample(built, probs, 2, source, trials=50)
    assert set(emitted) == {(root.children[1].token, VOCAB - 1)}


@pytest.mark.parametrize("name", ["threshold_single", "threshold_acc"])
def test_thresholds_that_change_the_distribution_are_refused(name):
    arguments = dict.fromkeys(
        ("predicts", "accept_index", "accept_token_num", "candidates", "retrive_index",
         "retrive_next_token", "retrive_next_sibling", "uniform_samples",
         "uniform_samples_for_final_sampling", "target_probs", "draft_probs", "deterministic")
    )  # fmt: skip
    thresholds = {"threshold_single": 1.0, "threshold_acc": 1.0} | {name: 0.9}
    with pytest.raises(ValueError, match="thresholds below 1"):
        tree.sample_tree_target_only(**arguments, **thresholds)


@pytest.mark.parametrize("seed", range(4))
def test_accepted_slots_are_packed(seed):
    """As SGLang moves keys: the accepted rows' slots onto the first ones of each request."""
    source = torch.Generator().manual_seed(seed)
    bs, n, width = 4, 9, 4
    slots = torch.randperm(500, generator=source)[: bs * n]
    kept = torch.randint(1, width + 1, (bs,), generator=source)
    accept_index = torch.full((bs, width), -1, dtype=torch.int32)
    first, chosen = [], []
    for request, count in enumerate(kept.tolist()):
        rows = torch.randperm(n, generator=source)[:count].sort().values + request * n
        accept_index[request, :count] = rows.int()
        chosen += slots[rows].tolist()
        first += slots[request * n : request * n + count].tolist()
    front, accepted = (torch.zeros(bs * width, dtype=torch.int64) for _ in range(2))
    tree.pack_first_slots(kept.int(), slots, front)
    tree.pack_accepted_slots(accept_index, slots, accepted, bs * width)
    rest = [0] * (bs * width - len(first))
    assert front.tolist() == first + rest
    assert accepted.tolist() == chosen + rest


def test_the_copy_of_a_page_is_not_needed():
    assert tree.keep_prefix_in_place(*itertools.repeat(None, 7)) is None
