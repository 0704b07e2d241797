"""MiMo's own layer: no copies of the vocabulary, and no checkpoint that lacks the layer.

Alone: pytest tests/serving/drafting/test_native_head.py
"""

import pytest
import torch
from torch import nn

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.compatibility import MIMO_LAYER
from fastmtp_sglang.serving.drafting import native_head
from fastmtp_sglang.serving.drafting.native_head import MiMoMTP

OF_THE_LAYER = f"{MIMO_LAYER}input_proj.weight"
VOCABULARY = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture
def head(monkeypatch) -> MiMoMTP:
    """Over a stand-in for SGLang's class, which says what it was given to load."""

    def init(self, config):
        nn.Module.__init__(self)
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens, self.lm_head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)
        self.model.input_proj = nn.Linear(8, 4)
        self.loaded = []

    monkeypatch.setattr(native_head.StockMiMoMTP, "__init__", init)
    monkeypatch.setattr(
        native_head.StockMiMoMTP,
        "load_weights",
        lambda self, weights: self.loaded.extend(name for name, _ in weights),
    )
    return MiMoMTP("config")


def tensors(*names: str):
    return [(name, torch.zeros(1)) for name in names]


def test_the_vocabulary_has_a_shape_and_no_memory(head):
    for weight in (head.model.embed_tokens.weight, head.lm_head.weight):
        assert (weight.is_meta, weight.shape, weight.requires_grad) == (True, (8, 4), False)
    assert not head.model.input_proj.weight.is_meta
    assert head.config == "config"


def test_all_but_the_vocabulary_is_loaded(head):
    head.load_weights(tensors(VOCABULARY[0], OF_THE_LAYER, "model.layers.0.x", VOCABULARY[1]))
    assert head.loaded == [OF_THE_LAYER, "model.layers.0.x"]


def test_a_checkpoint_without_the_layer(head):
    """SGLang would skip what is not there, and the layer would draft noise."""
    with pytest.raises(FastMTPError, match=r"no tensor model\.mtp_layers\.0\.input_proj.*--specul"):
        head.load_weights(tensors(*VOCABULARY, "model.layers.0.x"))


def test_a_later_update_may_lack_the_layer(head):
    head.load_weights(tensors(OF_THE_LAYER))
    head.load_weights(tensors("model.layers.0.x"))
    assert head.loaded == [OF_THE_LAYER, "model.layers.0.x"]
