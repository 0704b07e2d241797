"""The parallel training forward is the serving chain: equal to `FastMTPHead.draft()` everywhere.

Alone: pytest tests/training/test_model.py
"""

import pairs
import pytest
import torch
from torch import nn

from fastmtp_sglang.head.module import FastMTPHead
from fastmtp_sglang.training import attention
from fastmtp_sglang.training.loss import OutputLayer
from fastmtp_sglang.training.packing import pack

pytestmark = pytest.mark.heavy

STEPS = 4


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("block", [3, 128], ids=["several blocks", "one block"])
def test_every_chain_equals_draft_from_its_position(tmp_path, monkeypatch, family, block):
    """Each anchor's drafts and states, in a packed batch, against a KV cache run one at a time."""
    monkeypatch.setattr(attention, "_BLOCK", block)
    pair = pairs.make_pair(tmp_path, family)
    target, head = pair.frozen(), pair.chain_head()
    serving = FastMTPHead.from_pretrained(pair.head, dtype=torch.float64)
    documents = pairs.random_documents(11, 2, 1, 8, 3)
    batch = pack(documents, STEPS)
    hidden = target.packed_hidden_states(batch["input_ids"], batch["lengths"].tolist())
    output = OutputLayer(target.output_weight)
    drafts: list[torch.Tensor] = []

    def next_ids(step, states):
        return batch["input_ids"][batch["rows"] + 1] if states is None else drafts[-1]

    chain = head.chain_states(hidden[batch["rows"]], batch, target.embed, next_ids, STEPS)
    all_states = []
    for states in chain:
        all_states.append(states)
        drafts.append(output.argmax(states, batch))
    parallel = torch.stack(all_states)

    lm_head = nn.Linear(64, pairs.VOCABULARY, bias=False, dtype=torch.float64)
    lm_head.weight = nn.Parameter(target.output_weight)
    anchor = 0
    for ids, states, anchors in zip(
        batch["input_ids"].split(batch["lengths"].tolist()),
        hidden.split(batch["lengths"].tolist()),
        batch["anchor_lengths"].tolist(),
        strict=True,
    ):
        for position in range(anchors):
            tokens, outputs = serving.draft(
                states[None, : position + 1], ids[None, 1 : position + 2], target.embed, lm_head,
                STEPS,
            )  # fmt: skip
            torch.testing.assert_close(parallel[:, anchor], outputs, rtol=0, atol=1e-9)
            assert [step[anchor].item() for step in drafts] == tokens.tolist()
            anchor += 1
    assert anchor == len(batch["anchors"]) == 9 + 6 + 1
    assert torch.equal(head(draft_with=output, **batch)["drafts"], torch.stack(drafts))


def test_forward_is_teacher_forced(pair):
    """Step k reads the text's token x_{t+k}, not its own draft: states by hand, one anchor."""
    target, head = pair.frozen(), pair.chain_head()
    serving = FastMTPHead.from_pretrained(pair.head, dtype=torch.float64)
    (document,) = pairs.random_documents(7)
    batch = pack([document], 2)
    ids = document.input_ids
    hidden = target.packed_hidden_states(ids, [7])
    sums = head(**batch)["sums"]

    expected = torch.zeros(2, dtype=torch.float64)
    for position in range(5):
        rows, following = hidden[None, : position + 1], ids[None, 1 : position + 2]
        for step in range(2):
            label = position + step + 2
            if label > 6:
                continue
            places = torch.arange(rows.shape[1]).unsqueeze(0)
            output = serving(rows, target.embed(following), places)[0, -1]
            logits = output @ target.output_weight.T
            expected[step] += nn.functional.cross_entropy(logits, ids[label])
            # Earlier rows stay what they were: the cache of step 1.
            rows = torch.cat((rows, output[None, None]), dim=1)
            following = torch.cat((following, ids[None, label : label + 1]), dim=1)
    torch.testing.assert_close(sums, expected)


def test_packed_equals_unpacked(pair):
    """Loss, hits and gradient of documents side by side are the sums of theirs alone."""
    documents = pairs.random_documents(9, 5, 1, 14, 2, prompt=3)
    together, alone = pair.chain_head(), pair.chain_head()
    found = together(**pack(documents, 3))
    found["sums"].sum().backward()
    sums = torch.zeros(3, dtype=torch.float64)
    for document in documents:
        part = alone(**pack([document], 3))
        part["sums"].sum().backward()
        sums += part["sums"].detach()
    torch.testing.assert_close(found["sums"].detach(), sums)
    for name, parameter in together.named_parameters():
        other = alone.get_parameter(name)
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-9, atol=1e-11)


def test_what_follows_a_document_changes_nothing(pair):
    """No label or key comes from the next document, or from the start of the batch."""
    head = pair.chain_head()
    first, other, another = pairs.random_documents(8, 8, 8)
    sums = []
    for neighbour in (other, another):
        quiet = type(neighbour)(neighbour.input_ids, torch.zeros(8, dtype=torch.bool))
        sums.append(head(**pack([quiet, first, quiet], 3))["sums"])
    assert torch.equal(*sums)


@pytest.mark.parametrize("lengths", [(6, 4), (1,), (1, 2)])
def test_nothing_to_learn_is_zero_not_nan(pair, lengths):
    head = pair.chain_head()
    documents = pairs.random_documents(*lengths, prompt=100)
    batch = pack(documents, 3)
    assert batch["counts"].tolist() == [0, 0, 0]
    found = head(**batch)
    found["sums"].sum().backward()
    assert found["sums"].tolist() == [0, 0, 0]
    for parameter in head.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_checkpoint_of_the_training_head_is_a_head_directory(pair, tmp_path):
    pair.chain_head(torch.float32).save_pretrained(tmp_path / "saved")
    loaded = FastMTPHead.from_pretrained(tmp_path / "saved")
    assert loaded.config.architectures == ["FastMTPHead"]
    original = FastMTPHead.from_pretrained(pair.head).state_dict()
    assert all(torch.equal(tensor, original[name]) for name, tensor in loaded.state_dict().items())
