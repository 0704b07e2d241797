"""The head in plain torch: its draft chain, and its checkpoints."""

import models
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.checkpoint import init_head
from fastmtp_sglang.head.module import FastMTPHead

SEED = 7


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_draft_chain_equals_recomputation_without_cache(tmp_path, family):
    target_directory = models.target(tmp_path / "target", family)
    models.random_head(target_directory, tmp_path / "head")
    head = FastMTPHead.from_pretrained(tmp_path / "head").double()
    target = AutoModelForCausalLM.from_pretrained(target_directory).double()
    embed, lm_head = target.model.embed_tokens, target.lm_head
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(0, 49152, (1, 9), generator=generator)
    hidden = target.model(ids[:, :-1]).last_hidden_state

    tokens, states = head.draft(hidden, ids[:, 1:], embed, lm_head, num_steps=3)

    # Every step runs the whole sequence again: earlier rows keep what they were computed from.
    rows, following = hidden, ids[:, 1:]
    for step in range(3):
        positions = torch.arange(rows.shape[1]).unsqueeze(0)
        output = head(rows, embed(following), positions)
        token = lm_head(output[:, -1:]).argmax(-1)
        assert token.item() == tokens[step].item()
        torch.testing.assert_close(output[0, -1], states[step], rtol=0, atol=1e-10)
        rows = torch.cat((rows, output[:, -1:]), dim=1)
        following = torch.cat((following, token), dim=1)


def test_position_0_does_not_see_its_token(tmp_path):
    models.random_head(models.target(tmp_path / "target"), tmp_path / "head")
    head = FastMTPHead.from_pretrained(tmp_path / "head")
    generator = torch.Generator().manual_seed(SEED)
    hidden = torch.randn(1, 1, 64, generator=generator)
    one, other = torch.randn(2, 1, 1, 64, generator=generator)
    assert torch.equal(*(head(hidden, e, torch.tensor([[0]])) for e in (one, other)))
    assert not torch.equal(*(head(hidden, e, torch.tensor([[1]])) for e in (one, other)))


def test_checkpoint_loads_with_auto_classes(tmp_path):
    head = models.random_head(models.target(tmp_path / "target"), tmp_path / "head")
    assert AutoConfig.from_pretrained(tmp_path / "head").num_speculative_steps == 3
    loaded = AutoModel.from_pretrained(tmp_path / "head").state_dict()
    assert loaded.keys() == head.state_dict().keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in head.state_dict().items())


def test_init_copies_the_last_layer(tmp_path):
    target = models.target(tmp_path / "target")
    init_head(target, tmp_path / "head", num_speculative_steps=2)
    head = FastMTPHead.from_pretrained(tmp_path / "head")
    layer = AutoModelForCausalLM.from_pretrained(target).model.layers[-1].state_dict()
    assert all(torch.equal(head.block.state_dict()[name], layer[name]) for name in layer)
    assert head.config.num_speculative_steps == 2


def test_init_refuses(tmp_path):
    target = models.target(tmp_path / "target")
    with pytest.raises(FastMTPError, match=r"target exists already"):
        init_head(target, target)
    with pytest.raises(FastMTPError, match="must be at least 1"):
        init_head(target, tmp_path / "head", num_speculative_steps=0)
    assert not (tmp_path / "head").exists()
