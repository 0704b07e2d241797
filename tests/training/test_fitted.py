"""A head that starts at the best linear map, compared with `lstsq` over all rows at once.

Alone: pytest tests/training/test_fitted.py
"""

import pairs
import pytest
import torch

from fastmtp_sglang.head.config import GEMMA
from fastmtp_sglang.training import fitted
from fastmtp_sglang.training.loss import LossWeights, OutputLayer
from fastmtp_sglang.training.model import ChainHead
from fastmtp_sglang.training.packing import Document, pack

pytestmark = pytest.mark.heavy

FAMILIES = ("llama", "qwen2", "qwen3", GEMMA)


@pytest.fixture(params=FAMILIES)
def pair(request, tmp_path) -> pairs.Pair:
    return pairs.make_pair(tmp_path, request.param)


def rows(head, target, documents) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the map, and the normed stream behind which the next state is."""
    weight = head.final_layernorm.weight + (head.config.family == GEMMA)
    inputs, wanted = [], []
    for document in documents:
        states = target.packed_hidden_states(document.input_ids, [len(document.input_ids)])
        tokens = head.token_layernorm(target.embed(document.input_ids[1:]))
        inputs.append(torch.cat((head.hidden_layernorm(states[:-1]), tokens), 1)[1:])
        wanted.append((states / weight)[2:])
    return torch.cat(inputs).double(), torch.cat(wanted).double()


@torch.no_grad()
def test_the_map_is_that_of_least_squares(pair, monkeypatch):
    monkeypatch.setattr(fitted, "_RIDGE", 0.0)
    target, head = pair.frozen(torch.float32), ChainHead.from_pretrained(pair.head)
    documents = pairs.random_documents(150, 2, 1, 3, 200)
    inputs, wanted = rows(head, target, documents)
    assert fitted.fit(head, documents, target) == len(inputs) == 148 + 1 + 198
    expected = torch.linalg.lstsq(inputs, wanted).solution.T
    torch.testing.assert_close(head.input_proj.weight.double(), expected, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_block_adds_nothing(pair):
    head, target = ChainHead.from_pretrained(pair.head), pair.frozen(torch.float32)
    documents = pairs.random_documents(40, 30)
    fitted.fit(head, documents, target)
    (document,) = pairs.random_documents(12, seed=1)
    batch = pack([document], 1)
    states = target.packed_hidden_states(document.input_ids, [12])
    after = head.chain_states(
        states[batch["rows"]],
        batch,
        target.embed,
        lambda step, _: document.input_ids[batch["rows"] + step],
        1,
    )
    joined = torch.cat(
        (
            head.hidden_layernorm(states[:10]),
            head.token_layernorm(target.embed(document.input_ids[1:11])).masked_fill(
                torch.arange(10).unsqueeze(1) == 0, 0
            ),
        ),
        1,
    )
    torch.testing.assert_close(next(after), head.final_layernorm(head.input_proj(joined)))


@torch.no_grad()
def test_it_foretells_more_than_a_copied_layer(pair):
    """KL to the target on text that was not read, at every step."""
    target = pair.frozen(torch.float32)
    read, unread = (pairs.random_documents(*[200] * 4, seed=seed) for seed in (2, 3))
    found = []
    for fits in (False, True):
        head = ChainHead.from_pretrained(pair.head)
        if fits:
            fitted.fit(head, read, target)
        head.attach(target, OutputLayer(target.output_weight), LossWeights(0.0, 1.0))
        found.append(head(**pack(unread, 2))["sums"])
    assert (found[1] < found[0]).all()


def test_stored_states_are_read_and_no_more_than_needed(pair, monkeypatch):
    monkeypatch.setattr(fitted, "_TOKENS", 50)
    target, head = pair.frozen(torch.float32), ChainHead.from_pretrained(pair.head)
    documents = [
        Document(d.input_ids, d.counted, target.packed_hidden_states(d.input_ids, [30]))
        for d in pairs.random_documents(*[30] * 6)
    ]
    monkeypatch.setattr(type(target), "packed_hidden_states", None)
    assert fitted.fit(head, documents, target) == 2 * 28
