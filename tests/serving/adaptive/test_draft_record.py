"""What a record of one tree says about other shapes, against drafting each of them by itself.

A toy head, whose distribution depends on the path alone, is drafted from with SGLang's functions.

Alone: pytest tests/serving/adaptive/test_draft_record.py
"""

import pytest
import torch
from sglang.srt.speculative import eagle_utils, spec_utils

from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.serving.adaptive.draft_record import DraftRecord

VOCABULARY = 40
SEED = 7


def probabilities(states):
    """float32 [n, V] of n paths, each known by a number, int64 [n, 1]."""
    rows = []
    for (state,) in states.tolist():
        generator = torch.Generator().manual_seed(state)
        rows.append((2.5 * torch.randn(VOCABULARY, generator=generator)).softmax(0))
    return torch.stack(rows)


def behind(states, tokens):
    """The numbers of paths that go on with these tokens."""
    return (states * 1009 + tokens.view(-1, 1) * 31 + 17) % 1_000_003


def draft(shape, states, organize):
    """Draft behind each path int64 [B, 1] as SGLang's worker does; returns what it verifies."""
    select = spec_utils.select_top_k_tokens
    shares, tokens = probabilities(states).topk(shape.top_k)
    scores, lists = None, ([], [], [])
    for step in range(shape.num_steps):
        ids, states, scores, info = select(step, shares, tokens, states, scores, shape.top_k)
        for kept, part in zip(lists, info, strict=True):
            kept.append(part)
        states = behind(states, ids)
        shares, tokens = probabilities(states).topk(shape.top_k)
    return organize(*lists, shape.num_rows)


def accepted(shape, verified, text):
    """How many of one request's verified drafts are the text's."""
    parents, numbers, tokens = (tensor.tolist() for tensor in verified)
    of_number = dict(zip(numbers, tokens, strict=True))
    family, count = 0, 0
    for token in text[: shape.num_steps]:
        own = range(family * shape.top_k, (family + 1) * shape.top_k)
        right = [number for number in own if of_number.get(number) == token]
        if not right:
            break
        count += 1
        if right[0] not in parents:
            break
        family = parents.index(right[0])
    return count


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    """SGLang compiles one of them, which takes a minute."""
    stock = spec_utils._select_top_k_tokens_later
    plain = getattr(stock, "_torchdynamo_orig_callable", stock)
    monkeypatch.setattr(spec_utils, "_select_top_k_tokens_later", plain)


@pytest.mark.parametrize(
    ("used", "others"),
    [
        ("3x4x12", ["3x1", "2x4x12", "2x4x6", "2x4x3", "1x4x5", "3x4x30"]),
        ("3x8x16", ["3x1", "3x8x8", "2x8x16", "2x8x4", "1x8x9"]),
        ("2x8x4", ["2x1", "2x8x16", "1x8x4"]),
        ("1x4x3", ["1x1", "1x4x5"]),
    ],
)
def test_what_other_shapes_would_have_had_accepted(used, others):
    used, others = TreeShape.parse(used), list(map(TreeShape.parse, others))
    largest = TreeShape(4, used.top_k, 20)
    count, slots = 200, torch.randperm(300, generator=torch.Generator().manual_seed(SEED))[:200]
    states = torch.arange(count).view(-1, 1) * 7919 + SEED
    record = DraftRecord(largest, 300, "cpu")
    record.slots = slots
    verified = draft(used, states, record.keeping(eagle_utils.organize_draft_results))
    # The text is drawn from the head's own distribution, so that many drafts are right.
    torch.manual_seed(SEED)
    text = torch.empty(count, 6, dtype=torch.int64)
    for place in range(6):
        text[:, place] = torch.multinomial(probabilities(states), 1)[:, 0]
        states = behind(states, text[:, place])
    got = [accepted(used, row, line) for row, line in rows_of(verified, text)]
    followed = torch.full((count, used.num_rows), -1)
    for row, count_right in enumerate(got):
        followed[row, : count_right + 1] = text[row, : count_right + 1]
    names = [f"r{row}" for row in range(count)]
    drafted = record.take(
        used, names, slots, followed.flatten().int(), torch.tensor(got, dtype=torch.int32) + 1
    )
    # The fourth of them had ended before.
    emitted = {name: accepted for name, accepted in zip(names, got, strict=True) if name != "r3"}
    seen = drafted.seen(emitted, [used, *others])
    assert list(seen[used].accepted) == list(emitted.values())
    assert 0.3 < sum(got) / count < used.num_steps
    start = torch.arange(count).view(-1, 1) * 7919 + SEED
    for shape in others:
        alone = draft(shape, start, eagle_utils.organize_draft_results)
        right = [accepted(shape, row, line) for row, line in rows_of(alone, text)]
        del right[3]
        certain = [known == shape.num_steps for known in seen[shape].known]
        pairs = list(zip(seen[shape].accepted, seen[shape].known, right, strict=True))
        assert all(min(known, true) == min(known, said) for said, known, true in pairs), shape
        assert sum(certain) > 0.6 * count, shape


def rows_of(verified, text):
    return zip(zip(*verified, strict=True), text.tolist(), strict=True)


def test_drafts_behind_the_end_of_an_answer_count_as_rejected():
    shape = TreeShape.parse("2x2x5")
    record = DraftRecord(shape, 4, "cpu")
    record.slots = torch.tensor([2])
    states = torch.tensor([[3]])
    _, numbers, tokens = draft(shape, states, record.keeping(eagle_utils.organize_draft_results))
    first = tokens[0, 0].item()
    second = tokens[0, numbers[0].tolist().index(2)].item()
    followed = torch.tensor([first, second, 0, 0, 0], dtype=torch.int32)
    drafted = record.take(shape, ["a"], record.slots, followed, torch.tensor([3]))
    chain = TreeShape.of(2)
    for emitted in (2, 1, 0):
        seen = drafted.seen({"a": emitted}, [chain, shape])
        assert seen[chain] == seen[shape] == ([emitted], [2])
    assert drafted.seen({}, [shape])[shape] == ([], [])
