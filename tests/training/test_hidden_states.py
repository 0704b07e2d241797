"""Stored hidden states: the same loss as online, resumable, checked.

Alone: pytest tests/training/test_hidden_states.py
"""

import pairs
import pytest
import torch
from transformers import AutoModelForCausalLM

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.training import hidden_states as module
from fastmtp_sglang.training.hidden_states import store_hidden_states
from fastmtp_sglang.training.loss import LossWeights
from fastmtp_sglang.training.packing import pack
from fastmtp_sglang.training.target import FrozenTarget

LENGTHS = (9, 4, 13, 6, 2)


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "_TOKENS_PER_SHARD", 12)


def test_they_are_the_targets_after_its_final_norm(pair, tmp_path):
    """What serving hands to step 1: lm_head of it is the target's next-token distribution."""
    target = pair.frozen()
    stored = store_hidden_states(tmp_path / "s", pairs.random_documents(*LENGTHS), target)
    model = AutoModelForCausalLM.from_pretrained(pair.target, dtype=torch.float64)
    for document in stored:
        logits = model(document.input_ids.unsqueeze(0)).logits[0]
        torch.testing.assert_close(document.hidden_states @ target.output_weight.T, logits)


@pytest.mark.parametrize("weights", [LossWeights(), LossWeights(0.5, 0.5)])
def test_offline_loss_and_gradient_equal_online(pair, tmp_path, weights):
    documents = pairs.random_documents(*LENGTHS, prompt=2)
    stored = store_hidden_states(tmp_path / "s", documents, pair.frozen())
    results = []
    for batch in (pack(documents, 3), pack(stored, 3)):
        head = pair.chain_head(weights=weights)
        sums = head(**batch)["sums"]
        sums.sum().backward()
        results.append([sums.detach(), *(parameter.grad for parameter in head.parameters())])
    assert "hidden_states" not in pack(documents, 3)
    for online, offline in zip(*results, strict=True):
        torch.testing.assert_close(online, offline, rtol=1e-9, atol=1e-11)


def test_killed_run_goes_on_and_grown_data_computes_only_what_is_new(pair, tmp_path, monkeypatch):
    target = pair.frozen(torch.float32)
    computed = []
    original = FrozenTarget.packed_hidden_states

    def counting(self, ids, lengths):
        if len(computed) == 1 and killed:
            raise KeyboardInterrupt
        computed.append(lengths)
        return original(self, ids, lengths)

    monkeypatch.setattr(FrozenTarget, "packed_hidden_states", counting)
    documents, killed = pairs.random_documents(*LENGTHS), True
    with pytest.raises(KeyboardInterrupt):
        store_hidden_states(tmp_path / "s", documents, target)
    killed = False
    stored = store_hidden_states(tmp_path / "s", documents, target)
    assert computed == [[9, 4], [13], [6, 2]]
    for before, after in zip(documents, stored, strict=True):
        assert torch.equal(before.input_ids, after.input_ids)
        assert torch.equal(before.counted, after.counted)
    computed.clear()
    more = documents + pairs.random_documents(5, seed=1)
    store_hidden_states(tmp_path / "s", more, target)
    assert computed == [[6, 2, 5]]
    # The shard that no longer belongs to the data is gone.
    assert len(list((tmp_path / "s").glob("*.safetensors"))) == 3


def test_another_target_is_not_mistaken(pair, tmp_path):
    documents = pairs.random_documents(*LENGTHS)
    store_hidden_states(tmp_path / "s", documents, pair.frozen(torch.float32))
    other = pairs.make_pair(tmp_path / "other", "qwen2")
    stored = store_hidden_states(tmp_path / "s", documents, other.frozen(torch.float32))
    expected = other.frozen(torch.float32).packed_hidden_states(documents[0].input_ids, [9])
    torch.testing.assert_close(stored[0].hidden_states, expected)


def test_damage_is_noticed(pair, tmp_path):
    documents = pairs.random_documents(*LENGTHS)
    store_hidden_states(tmp_path / "s", documents, pair.frozen(torch.float32))
    shard = min((tmp_path / "s").glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-7] ^= 1
    shard.write_bytes(content)
    with pytest.raises(FastMTPError, match=r"damaged.*Remove the file"):
        store_hidden_states(tmp_path / "s", documents, pair.frozen(torch.float32))
    shard.unlink()
    store_hidden_states(tmp_path / "s", documents, pair.frozen(torch.float32))


def test_states_that_are_all_zero_are_refused(pair, tmp_path, monkeypatch):
    monkeypatch.setattr(
        FrozenTarget, "packed_hidden_states", lambda self, ids, lengths: torch.zeros(len(ids), 64)
    )
    with pytest.raises(FastMTPError, match="zero or not finite"):
        store_hidden_states(tmp_path / "s", pairs.random_documents(4), pair.frozen())
    assert not list((tmp_path / "s").glob("*.safetensors"))
