"""The chunked loss against the plain one in float64.

Alone: pytest tests/training/test_loss.py
"""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from fastmtp_sglang.training import loss as module
from fastmtp_sglang.training.loss import Labels, LossWeights, OutputLayer, chain_loss, step_weights

STEPS, ANCHORS, LABELS, WIDTH, ROWS = 3, 13, 11, 8, 50


def case(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(STEPS, ANCHORS, WIDTH, dtype=torch.float64, generator=generator)
    weight = torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)
    target_states = torch.randn(LABELS, WIDTH, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, ROWS, (LABELS,), generator=generator)
    rows = torch.stack([torch.randperm(ANCHORS, generator=generator)[:LABELS] for _ in range(3)])
    rows[1, :2] = -1
    rows[2, :5] = -1
    return states, rows, labels, target_states, weight


def plain(states, rows, labels, target_states, weight, weights: LossWeights) -> torch.Tensor:
    sums = []
    for step in range(STEPS):
        chosen = rows[step] >= 0
        logits = states[step][rows[step][chosen]] @ weight.T
        teacher = (target_states[chosen] @ weight.T / weights.temperature).softmax(-1)
        hard = cross_entropy(logits, labels[chosen], reduction="sum")
        soft = kl_div(logits.log_softmax(-1), teacher, reduction="sum")
        sums.append(weights.cross_entropy * hard + weights.kl * soft)
    return torch.stack(sums)


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize(
    "weights",
    [LossWeights(), LossWeights(0.0, 1.0), LossWeights(0.3, 0.7), LossWeights(0.5, 1.0, 0.6)],
)
def test_equals_the_plain_loss_and_its_gradient(monkeypatch, chunk, weights):
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", chunk * ROWS)
    states, rows, labels, target_states, weight = case()
    ours, theirs = (states.clone().requires_grad_() for _ in range(2))
    factors = torch.tensor([0.5, 2.0, -1.0], dtype=torch.float64)
    wanted = Labels(rows, labels, target_states)
    sums, correct = chain_loss(ours, wanted, OutputLayer(weight), weights)
    expected = plain(theirs, rows, labels, target_states, weight, weights)
    torch.testing.assert_close(sums, expected)
    (sums * factors).sum().backward()
    (expected * factors).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for step in range(STEPS):
        chosen = rows[step] >= 0
        best = (states[step][rows[step][chosen]] @ weight.T).argmax(-1)
        assert correct[step] == (best == labels[chosen]).sum()


def test_restricted_output_is_the_loss_over_those_rows():
    states, rows, _, target_states, weight = case()
    ids = torch.tensor([3, 5, 8, 20, 21, 49])
    output = OutputLayer.restricted(weight, ids)
    labels = ids[torch.arange(LABELS) % len(ids)]
    local = output.to_local(labels)
    assert torch.equal(output.to_ids(local), labels)
    weights = LossWeights(0.4, 0.6)
    sums, _ = chain_loss(states, Labels(rows, local, target_states), output, weights)
    torch.testing.assert_close(
        sums, plain(states, rows, local, target_states, weight[ids], weights)
    )
    best = (states[0] @ weight.T)[:, ids].argmax(-1)
    assert torch.equal(output.argmax(states[0], {}), ids[best])


def test_a_label_of_vanishing_probability_stays_finite():
    weight = torch.eye(4)
    states = torch.tensor([[[1000.0, 0, 0, 0]]], requires_grad=True)
    labels = Labels(torch.tensor([[0]]), torch.tensor([2]))
    sums, _ = chain_loss(states, labels, OutputLayer(weight), LossWeights())
    sums.sum().backward()
    assert sums.tolist() == [1000.0]
    assert states.grad.tolist() == [[[1.0, 0.0, -1.0, 0.0]]]


def test_no_more_logits_than_a_chunk(monkeypatch):
    """The peak: logits of one chunk, never of all labels."""
    seen = []
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 4 * ROWS)
    original = OutputLayer.logits

    def logits(self, states):
        seen.append(len(states))
        return original(self, states)

    monkeypatch.setattr(OutputLayer, "logits", logits)
    states, rows, labels, target_states, weight = case()
    wanted = Labels(rows, labels, target_states)
    chain_loss(states, wanted, OutputLayer(weight), LossWeights(1, 1))
    assert max(seen) == 4


def test_step_weights_are_the_papers():
    torch.testing.assert_close(
        step_weights(0.6, 3), torch.tensor([0.5102, 0.3061, 0.1837], dtype=torch.float64),
        atol=5e-5, rtol=0,
    )  # fmt: skip
    assert step_weights(0.6, 5).sum().item() == pytest.approx(1)
