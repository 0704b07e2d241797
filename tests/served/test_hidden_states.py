"""The head inside SGLang computes what the head in training computes, step by step.

Reference: the target in transformers and `head.module.FastMTPHead`, both in float64, given nothing
but each request's final tokens. Compared: whatever SGLang's draft model was given and returned, in
float32, with chunks, shared prefixes, batches of different lengths and rejected drafts.

Alone: pytest tests/served/test_hidden_states.py (starts six engines)
"""

from collections import Counter
from functools import cached_property

import pytest
import torch
from engine_runs import MAX_NEW_TOKENS, SCHEDULES, EngineRun, batches
from transformers import AutoModelForCausalLM

from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.head.module import FastMTPHead

# Hidden states are of size 1. Measured: at most 1.2e-6 through target and head in float32.
TOLERANCE = {"rtol": 0, "atol": 1e-5}


class Reference:
    """The training side for one request, in float64."""

    def __init__(self, target: torch.nn.Module, head: FastMTPHead, tokens: list[int]) -> None:
        self.target, self.head, self.tokens = target, head, torch.tensor([tokens])

    @cached_property
    @torch.no_grad()
    def hidden_states(self) -> torch.Tensor:
        """[T, D], what the head is given: the target's, after its final norm."""
        return self.target.model(self.tokens).last_hidden_state[0]

    @cached_property
    @torch.no_grad()
    def first_step(self) -> torch.Tensor:
        """[T - 1, D], the head applied once to all positions."""
        embeddings = self.target.model.embed_tokens(self.tokens[:, 1:])
        positions = torch.arange(len(self.tokens[0]) - 1).unsqueeze(0)
        return self.head(self.hidden_states[:-1].unsqueeze(0), embeddings, positions)[0]

    def draft(self, length: int, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draft tokens [K] and hidden states [K, D] after `length` positions."""
        return self.head.draft(
            self.hidden_states[:length].unsqueeze(0),
            self.tokens[:, 1 : length + 1],
            self.target.model.embed_tokens,
            self.target.lm_head,
            num_steps,
        )


@pytest.fixture(scope="module", params=["llama", "qwen3", "mimo", "gemma3_text"])
def run(request, engine_runs) -> EngineRun:
    return engine_runs[request.param]


@pytest.fixture(scope="module")
def references(run) -> dict[str, Reference]:
    return references_of(run)


def references_of(run: EngineRun) -> dict[str, Reference]:
    target = AutoModelForCausalLM.from_pretrained(run.target).double()
    head = FastMTPHead.from_pretrained(run.head).double()
    for name, parameter in [*target.named_parameters(), *head.named_parameters()]:
        assert "norm" not in name or (parameter - 1).abs().mean() > 0.1, name
    return {rid: Reference(target, head, run.sequence(rid)) for rid in run.prompts}


def rows_by_request(record: dict) -> list[tuple[str, slice]]:
    """Each request of a forward pass with its rows."""
    slices, start = [], 0
    for rid, count in zip(record["rids"], record["rows"], strict=True):
        slices.append((rid, slice(start, start + count)))
        start += count
    assert start == len(record["ids"])
    return slices


def assert_close(actual, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.from_numpy(actual).double(), expected, **TOLERANCE)


def test_answers_are_the_targets(run, references):
    """The reference itself is right: the float64 target says the same tokens."""
    for rid, reference in references.items():
        with torch.no_grad():
            said = reference.target.lm_head(reference.hidden_states).argmax(-1).tolist()
        start = len(run.prompts[rid])
        assert len(run.answers[rid]) == MAX_NEW_TOKENS
        assert said[start - 1 : -1] == run.answers[rid]


def test_prefill(run, references):
    """Every chunk: its rows are the prompt's, its output is the head's at the last of them."""
    starts: dict[str, list[int]] = {rid: [] for rid in run.prompts}
    batch_sizes = set()
    for record in run.records:
        if record["phase"] != "EXTEND":
            continue
        batch_sizes.add(len(record["rids"]))
        for i, (rid, rows) in enumerate(rows_by_request(record)):
            reference, positions = references[rid], record["positions"][rows]
            starts[rid].append(int(positions[0]))
            assert record["ids"][rows].tolist() == reference.tokens[0, positions + 1].tolist()
            assert_close(record["hidden_states"][rows], reference.hidden_states[positions])
            assert_close(record["output"][i], reference.first_step[positions[-1]])
    assert max(batch_sizes) > 1
    assert starts["1 token"] == [0], "position 0 alone"
    assert len(starts["40"]) >= 3
    # A cached position of the head depends on the token after it: one less than is shared.
    assert 0 < starts["30 shared"][0] < 30
    assert 0 < starts["40 shared"][0] < 40


def assert_extensions(run: EngineRun, references: dict[str, Reference]) -> Counter:
    """The rows of accepted tokens continue the head's cache with the target's hidden states.

    Returns how many of them there were by the number of accepted tokens.
    """
    accepted_counts = Counter()
    for record in run.records:
        if record["phase"] != "DRAFT_EXTEND_V2":
            continue
        for (rid, rows), accepted in zip(
            rows_by_request(record), record["accepted"].tolist(), strict=True
        ):
            assert rows.stop - rows.start == run.num_steps + 1
            reference = references[rid]
            positions = record["positions"][rows]
            # Tokens beyond the requested number are accepted too, and cut from the answer.
            kept = min(accepted, len(reference.tokens[0]) - 1 - int(positions[0]))
            if kept <= 0:
                continue
            accepted_counts[accepted] += 1
            rows, positions = slice(rows.start, rows.start + kept), positions[:kept]
            assert record["ids"][rows].tolist() == reference.tokens[0, positions + 1].tolist()
            assert_close(record["hidden_states"][rows], reference.hidden_states[positions])
            assert_close(record["output"][rows], reference.first_step[positions])
    return accepted_counts


def test_draft_extend(run, references):
    accepted_counts = assert_extensions(run, references)
    # None, some and all drafts accepted.
    assert set(accepted_counts) == set(range(1, run.num_steps + 2))


def test_draft_steps(run, references):
    """Steps 1 to K: tokens, positions, and the hidden states that one step hands to the next."""
    chains, steps, widest = Counter(), [], 0
    for record in run.records:
        if record["phase"] == "DECODE":
            steps.append(record)
        if record["phase"] != "drafted":
            continue
        assert len(steps) == run.num_steps - 1
        widest = max(widest, len(set(record["positions"].tolist())))
        for i, rid in enumerate(record["rids"]):
            reference, length = references[rid], int(record["positions"][i])
            if length >= len(reference.tokens[0]):
                continue
            chains[rid] += 1
            tokens, states = reference.draft(length, run.num_steps)
            assert record["ids"][i].tolist() == [reference.tokens[0, length], *tokens]
            for k, step in enumerate(steps):
                assert step["rids"] == record["rids"]
                assert step["positions"][i] == length + k
                assert step["ids"][i] == tokens[k]
                assert_close(step["hidden_states"][i], states[k])
                assert_close(step["output"][i], states[k + 1])
        steps.clear()
    assert widest == 4, "requests of four lengths drafted in one batch"
    # At most K + 1 tokens an iteration, the first one from the prefill.
    assert min(chains[rid] for rid in run.prompts) >= (MAX_NEW_TOKENS - 1) // (run.num_steps + 1)


def test_keys_of_steps_without_drafts(engine_runs):
    """With K = 0 in between, the head's output is what all keys before it make it.

    The draft after such a step begins with token 0; the extension after that, and the drafts from
    then on, attend to keys that were owed.
    """
    run = engine_runs["varying"]
    assert run.answers == engine_runs["llama"].answers
    references = references_of(run)
    written = [len(record["positions"]) for record in run.records if record["phase"] == "KEYS"]
    assert max(written) > 2 * len(batches()[0]), "several steps of several requests in one pass"
    assert assert_extensions(run, references).total() > 2 * len(run.prompts)
    begun_with_nothing, drafted = set(), 0
    for record in run.records:
        if record["phase"] != "drafted":
            continue
        for rid, length, (_, *drafts) in zip(
            record["rids"], record["positions"].tolist(), record["ids"].tolist(), strict=True
        ):
            if drafts[0] == 0:
                begun_with_nothing.add(rid)
            elif length < len(references[rid].tokens[0]):
                assert drafts == references[rid].draft(length, run.num_steps)[0].tolist()
                drafted += 1
    assert begun_with_nothing == set(run.prompts)
    assert drafted > 2 * len(run.prompts)


def test_answers_while_shapes_change(engine_runs):
    """Chains, trees of one top-k and plain decoding by turns, in batches and alone."""
    run = engine_runs["shapes"]
    assert run.answers == engine_runs["llama"].answers
    drafted, seen = Counter(), [record for record in run.records if record["phase"] == "seen"]
    for record in seen:
        shape, emitted = record["shape"], record["emitted"]
        drafted[shape] += sum(emitted)
        # What the record of a tree says of the tree itself is what happened.
        assert record["accepted"][shape] == emitted
        own = TreeShape.parse(shape)
        for name, accepted in record["accepted"].items():
            other = TreeShape.parse(name)
            # With fewer steps the same rows reach wider, and may hold what this tree did not.
            if (other.num_steps, other.top_k) == (own.num_steps, own.top_k) and other.is_within(
                own
            ):
                assert all(a <= b for a, b in zip(accepted, emitted, strict=True))
    wanted = {str(TreeShape.parse(text)) for text in SCHEDULES["shapes"] if text != "plain"}
    assert set(drafted) == wanted
    assert all(count > 0 for count in drafted.values()), drafted
