"""The model card: what is known is on it, and nothing else.

Alone: pytest tests/training/test_card.py
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from fastmtp_sglang.training.card import model_card

METRICS = {
    "eval_loss_1": 1.5,
    "eval_teacher_1": 0.8125,
    "eval_teacher_2": 0.5,
    "eval_accepted_1": 0.75,
    "eval_accepted_2": 0.4,
    "eval_acceptance_length": 2.15,
    "eval_draft_accepted_1": 0.7,
    "eval_draft_accepted_2": 0.35,
    "eval_draft_acceptance_length": 2.05,
    "eval_drafts": 1234.0,
}


@pytest.fixture
def head():
    config = SimpleNamespace(num_speculative_steps=3, family="qwen2", hidden_size=64)
    parameters = [torch.empty(1_000_000, device="meta"), torch.empty(340_000, device="meta")]
    return SimpleNamespace(config=config, dtype=torch.bfloat16, parameters=lambda: parameters)


def test_what_it_drafts_for(head):
    card = model_card(head, Path("/models/MiMo-7B"), None, None, None)
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "fastmtp-sglang"
    assert "# FastMTP head for MiMo-7B\n" in card
    assert "up to 3 times" in card
    assert "1.3 M parameters, torch.bfloat16, a qwen2 block of hidden size 64" in card
    assert "fastmtp serve TARGET --draft MiMo-7B-head" in card


@pytest.mark.parametrize("said", [".", "sub/..", "../here"])
def test_a_target_that_is_named_by_its_place_is_called_by_its_name(
    head, tmp_path, monkeypatch, said
):
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert "# FastMTP head for here\n" in model_card(head, Path(said), None, None, None)


def test_what_is_not_known_is_left_out(head):
    card = model_card(head, "t", {}, {}, None)
    for word in ("Figures", "Recipe", "draft vocabulary", "None"):
        assert word not in card


def test_figures_are_a_table_of_the_steps(head):
    card = model_card(head, "t", None, METRICS, Path("v.safetensors"))
    assert "is its draft vocabulary" in card
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert rows == [
        "| | step 1 | step 2 | acceptance length |",
        "|---|---|---|---|",
        "| teacher-forced accuracy on held-out text | 81.2% | 50.0% |  |",
        "| accepted, full vocabulary | 75.0% | 40.0% | 2.15 |",
        "| accepted, draft vocabulary | 70.0% | 35.0% | 2.05 |",
    ]
    assert "Measured on 1234 drafts." in card


def test_without_a_draft_vocabulary_its_row_is_missing(head):
    known = {name: value for name, value in METRICS.items() if "draft_" not in name}
    card = model_card(head, "t", None, known, None)
    assert "accepted, full vocabulary" in card
    assert "draft vocabulary" not in card


def test_the_recipe_can_be_trained_again(head):
    recipe = {"target": "m", "data": {"train": ["a: b", "ü"]}, "optimizer": {"betas": [0.9, 0.95]}}
    card = model_card(head, "t", recipe, None, None)
    written = card.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(written) == recipe
    assert list(yaml.safe_load(written)) == list(recipe)
