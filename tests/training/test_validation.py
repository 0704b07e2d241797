"""Free-running acceptance is what a greedy server would count.

Alone: pytest tests/training/test_validation.py
"""

import pairs
import pytest
import tiny_models as models
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from fastmtp_sglang.head.module import FastMTPHead
from fastmtp_sglang.training.greedy import greedy_continuations
from fastmtp_sglang.training.loss import OutputLayer
from fastmtp_sglang.training.packing import Document, pack
from fastmtp_sglang.training.validation import free_running, teacher_forced, walk

STEPS = 3
PROMPTS = [[5, 17, 300, 4000], [9, 8, 7], [100, 2000, 30000, 5, 5, 5]]


def served(target, head, embed, lm_head, prompt: list[int], text: list[int]) -> list[int]:
    """Accepted drafts of each step of a greedy server, run token by token."""
    ids = text
    known = len(prompt) + 1
    found = []
    while known - 1 + STEPS < len(ids):
        hidden = target.model(torch.tensor([ids[: known - 1]])).last_hidden_state
        drafts, _ = head.draft(hidden, torch.tensor([ids[1:known]]), embed, lm_head, STEPS)
        count = 0
        while count < STEPS and drafts[count].item() == ids[known + count]:
            count += 1
        found.append(count)
        known += count + 1
    return found


@pytest.mark.heavy
def agreeing_pair(folder) -> pairs.Pair:
    target = models.target(folder / "target", output_scale=0.02)
    models.agreeing_head(target, folder / "head", noise=0.4)
    return pairs.Pair(target, folder / "head")


@pytest.mark.heavy
def test_walk_equals_a_server_token_by_token(tmp_path):
    pair = agreeing_pair(tmp_path)
    frozen = pair.frozen()
    documents = greedy_continuations(frozen, PROMPTS, [2], 40, tmp_path / "greedy.json")
    model = AutoModelForCausalLM.from_pretrained(pair.target, dtype=torch.float64)
    head = FastMTPHead.from_pretrained(pair.head, dtype=torch.float64)
    embed, lm_head = model.model.embed_tokens, model.lm_head
    kept = torch.arange(0, pairs.VOCABULARY, 2)
    restricted = nn.Linear(64, pairs.VOCABULARY, dtype=torch.float64)
    restricted.weight = nn.Parameter(lm_head.weight.detach().clone())
    restricted.bias = nn.Parameter(torch.full((pairs.VOCABULARY,), -1e9, dtype=torch.float64))
    restricted.bias.data[kept] = 0

    expected: dict[str, list[int]] = {"full": [], "half": []}
    for prompt, document in zip(PROMPTS, documents, strict=True):
        text = document.input_ids.tolist()
        for name, layer in (("full", lm_head), ("half", restricted)):
            expected[name] += served(model, head, embed, layer, prompt, text)
    layers = {
        "full": OutputLayer(frozen.output_weight),
        "half": OutputLayer.restricted(frozen.output_weight, kept),
    }
    for name, output in layers.items():
        found = free_running(pair.chain_head(target=frozen), documents, output, STEPS)
        lengths = expected[name]
        assert found.drafts == len(lengths)
        assert found.length == pytest.approx(1 + sum(lengths) / len(lengths))
        for step in range(STEPS):
            assert found.accepted[step] == sum(n > step for n in lengths) / len(lengths)
    # The comparison is one: some drafts are right, some wrong, and the list matters.
    assert 0.05 < sum(expected["full"]) / (STEPS * len(expected["full"])) < 0.95
    assert sum(expected["half"]) < sum(expected["full"])


def test_greedy_continuations_are_the_targets_and_kept(pair, tmp_path, monkeypatch):
    target = pair.frozen()
    cache = tmp_path / "greedy.json"
    documents = greedy_continuations(target, PROMPTS, [2], 8, cache)
    for prompt, document in zip(PROMPTS, documents, strict=True):
        ids = list(prompt)
        for _ in range(8):
            ids.append(target.model(torch.tensor([ids])).logits[0, -1].argmax().item())
            if ids[-1] == 2:
                break
        assert document.input_ids.tolist() == ids
        assert document.counted.tolist() == [i >= len(prompt) for i in range(len(ids))]
    stop = documents[0].input_ids[6].item()
    stopped = greedy_continuations(target, PROMPTS[:1], [stop], 8, tmp_path / "other.json")
    answer = documents[0].input_ids[4:].tolist()
    assert stopped[0].input_ids.tolist()[4:] == answer[: answer.index(stop) + 1]

    monkeypatch.setattr("fastmtp_sglang.training.greedy._generate", None)
    again = greedy_continuations(target, PROMPTS, [2], 8, cache)
    assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(documents, again, strict=True))


def test_walk_starts_at_the_last_prompt_position_and_steps_over_accepted_tokens():
    document = Document(torch.arange(12), torch.arange(12) >= 4)
    accepted = {3: 2, 6: 0, 7: 3, 8: 1}
    # From 3: two accepted and one more token -> 6; none -> 7; three -> 11, beyond the text.
    assert walk(document, accepted, 3) == [2, 0, 3]


def test_tokens_outside_the_list_count_as_wrong(pair):
    frozen = pair.frozen()
    documents = []
    for document in pairs.random_documents(9, 14, prompt=2, vocabulary=1000):
        states = frozen.packed_hidden_states(document.input_ids, [len(document.input_ids)])
        documents.append(Document(document.input_ids, document.counted, states))
    output = OutputLayer.restricted(frozen.output_weight, torch.arange(500))
    listed = [output.to_train(document) for document in documents]
    assert all(not d.counted[d.input_ids >= 500].any() for d in listed)
    head = pair.chain_head(target=frozen, output=output)
    found = teacher_forced(head, documents, output, STEPS)
    batch = pack(listed, STEPS)
    alone = head(**batch)
    everything = pack(documents, STEPS)["counts"]
    assert torch.equal(
        torch.tensor(found.accepted, dtype=torch.float64), alone["correct"] / everything.double()
    )
    torch.testing.assert_close(
        torch.tensor(found.loss, dtype=torch.float64), alone["sums"].detach() / batch["counts"]
    )
