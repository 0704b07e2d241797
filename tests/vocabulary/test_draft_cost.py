"""Bytes and predicted speed against figures that are known: MiMo-7B and the paper.

Run alone: pytest tests/vocabulary/test_draft_cost.py
"""

import pytest

from fastmtp_sglang.vocabulary.draft_cost import DraftCost

MIMO_7B = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151680,
    "torch_dtype": "bfloat16",
}


def test_bytes_of_mimo_7b():
    cost = DraftCost.from_config(MIMO_7B)
    assert cost.layer / 1e6 == pytest.approx(421.5, abs=0.1)
    assert cost.row * cost.vocab_size / 1e9 == pytest.approx(1.243, abs=0.001)
    # 7.6 billion parameters without the embedding and the MTP layer.
    assert cost.target / 2e9 == pytest.approx(7.0, abs=0.1)
    assert DraftCost.from_config(MIMO_7B | {"torch_dtype": "float32"}).row == 2 * cost.row


def test_experts_count_as_often_as_a_token_uses_them():
    dense = DraftCost.from_config(MIMO_7B)
    sparse = DraftCost.from_config(
        MIMO_7B | {"num_experts_per_tok": 8, "moe_intermediate_size": 1376, "n_routed_experts": 256}
    )
    assert sparse.layer == dense.layer


def test_acceptance_length_of_the_paper():
    cost = DraftCost.from_config(MIMO_7B)
    assert cost.acceptance_length(1.0) == pytest.approx(2.73)
    # The paper loses 0.07 with its lists, which corresponds to about 97.5 % coverage.
    assert cost.acceptance_length(0.975) == pytest.approx(2.66, abs=0.01)
    assert cost.acceptance_length(0.0) == 1.0


def test_speed_is_relative_to_the_full_vocabulary():
    cost = DraftCost.from_config(MIMO_7B)
    assert cost.speedup(151680, 1.0) == 1.0
    assert cost.speedup(32768, 0.975) == pytest.approx(1.14, abs=0.02)  # the paper: + 12.5 %
    assert cost.speedup(32768, 0.3) < 1.0


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "intermediate_size"])
def test_no_cost_without_the_shapes(missing: str):
    assert DraftCost.from_config({k: v for k, v in MIMO_7B.items() if k != missing}) is None
