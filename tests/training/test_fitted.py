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
from fastmtp_sglang.training.packing import pack

pytestmark = pytest.mark.heavy

FAMILIES = ("llama", "qwen2", "qwen3", GEMMA)


@pytest.fixture(params=FAMILIES)
def pair(request, tmp_path) -> pairs.Pair:
    return pairs.make_pair(tmp_path, request.param)


def rows(head, target, documents) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the map, and what the target's last layer reads one position further on."""
    inputs, wanted = [], []
    for document in documents:
        states, streams = target.packed_streams(document.input_ids, [len(document.input_ids)])
        tokens = head.token_layernorm(target.embed(document.input_ids[1:]))
        inputs.append(torch.cat((head.hidden_layernorm(states[:-1]), tokens), 1)[1:])
        wanted.append(streams[2:])
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
def test_streams_are_what_the_last_layer_reads(pair):
    """From them, that layer and the last norm give the target's states; documents do not mix."""
    target = pair.frozen(torch.float32)
    documents = pairs.random_documents(9, 30, 4)
    ids = torch.cat([document.input_ids for document in documents])
    states, streams = target.packed_streams(ids, [9, 30, 4])
    assert torch.equal(states, target.packed_hidden_states(ids, [9, 30, 4]))
    output = target.model(ids[9:39].unsqueeze(0), output_hidden_states=True)
    # The last entry is after the last layer and the norm.
    torch.testing.assert_close(streams[9:39], output.hidden_states[-2][0], rtol=1e-4, atol=1e-5)
    assert not target.model.model.layers[-1]._forward_pre_hooks


@torch.no_grad()
def test_the_block_stays_the_copied_layer(pair):
    head, untouched = (ChainHead.from_pretrained(pair.head) for _ in range(2))
    fitted.fit(head, pairs.random_documents(40, 30), pair.frozen(torch.float32))
    changed = {
        name
        for name, tensor in head.state_dict().items()
        if not torch.equal(tensor, untouched.state_dict()[name])
    }
    assert changed == {"input_proj.weight"}


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


def test_no_more_is_read_than_needed(pair, monkeypatch):
    monkeypatch.setattr(fitted, "_TOKENS", 50)
    monkeypatch.setattr(fitted, "_AT_ONCE", 1)
    target, head = pair.frozen(torch.float32), ChainHead.from_pretrained(pair.head)
    assert fitted.fit(head, pairs.random_documents(*[30] * 6), target) == 2 * 28
