"""Rows of plain lm_heads are their weight; quantized ones compute them as their layer does.

Alone: pytest tests/serving/drafting/test_lm_head_rows.py
"""

import logging
from types import SimpleNamespace

import pytest
import torch
from logits_processors import processor
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from fastmtp_sglang.serving.drafting import lm_head_rows
from fastmtp_sglang.serving.drafting.draft_head import DraftHead
from fastmtp_sglang.serving.drafting.lm_head_rows import LMHeadRows
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary

VOCAB, WIDTH, SLOTS, BLOCK, SEED = 96, 24, 8, 8, 20250918


class Fp8ByRow:
    """float8 weights with a scale a row, as compressed-tensors has them."""

    def create(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = weight.abs().amax(1, keepdim=True) / 448
        return {"weight": (weight / scale).to(torch.float8_e4m3fn), "scale": scale}

    def apply(self, layer, x, bias=None):
        return x @ (layer.weight.float() * layer.scale).to(x.dtype).T


class Int8ByBlock:
    """int8 weights with a scale a block, activations quantized to int8 with a scale a token."""

    def create(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        blocks = weight.view(VOCAB // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK)
        scale = blocks.abs().amax((1, 3), keepdim=True) / 127
        ints = (blocks / scale).round().to(torch.int8)
        return {"weight": ints.view(VOCAB, WIDTH), "scale": scale}

    def apply(self, layer, x, bias=None):
        blocks = layer.weight.view(VOCAB // BLOCK, BLOCK, WIDTH // BLOCK, BLOCK)
        of_tokens = x.abs().amax(1, keepdim=True) / 127
        ints = (x / of_tokens).round() * of_tokens
        return ints @ (blocks.float() * layer.scale).view(VOCAB, WIDTH).to(x.dtype).T


class FixedActivationScale(Fp8ByRow):
    """Activations divided by a scale found beforehand, and rounded."""

    def apply(self, layer, x, bias=None):
        rounded = (x / 0.03).to(torch.float8_e4m3fn).to(x.dtype) * 0.03
        return super().apply(layer, rounded)


class Packed4Bits:
    """Two weights a byte: rows of another width than the layer's."""

    def create(self, weight: torch.Tensor) -> dict[str, torch.Tensor]:
        scale = weight.abs().amax() / 7
        ints = (weight / scale).round().to(torch.int8) + 8
        return {"qweight": (ints[:, ::2] | ints[:, 1::2] << 4).to(torch.uint8), "scale": scale}

    def apply(self, layer, x, bias=None):
        ints = torch.stack((layer.qweight & 15, layer.qweight >> 4), 2).view(VOCAB, WIDTH)
        return x @ ((ints.float() - 8) * layer.scale).to(x.dtype).T


FORMATS = [Fp8ByRow, Int8ByBlock, FixedActivationScale, Packed4Bits]


def layer(method) -> torch.nn.Module:
    made = torch.nn.Module()
    weight = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(SEED))
    for name, tensor in method.create(weight).items():
        made.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    made.quant_method, made.embedding_dim = method, WIDTH
    made.shard_indices = SimpleNamespace(org_vocab_start_index=0, org_vocab_end_index=VOCAB)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", FORMATS)
def test_rows_say_what_the_layer_says(monkeypatch, method, dtype):
    """Up to a factor, and what dtype and quantized activations round."""
    # Several turns, the last of them short.
    monkeypatch.setattr(lm_head_rows, "_UNITS", 10)
    head = layer(method())
    rows = LMHeadRows.of(head, dtype)
    assert (rows.tensor.shape, rows.tensor.dtype) == ((VOCAB, WIDTH), dtype)
    assert rows.tensor.is_contiguous()
    x = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = torch.nn.functional.normalize(x.double() @ rows.tensor.double().T)
    theirs = torch.nn.functional.normalize(head.quant_method.apply(head, x).double())
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)


@pytest.mark.parametrize("method", FORMATS)
def test_drafts_of_a_quantized_lm_head(method):
    """From lists that differ by request, and again after its weights changed."""
    vocabulary = DraftVocabulary(
        vocab_size=VOCAB,
        tokenizer_fingerprint="sha256:none",
        ids={"even": torch.arange(0, VOCAB, 2), "odd": torch.arange(1, VOCAB, 2)},
        token_scripts=torch.zeros(VOCAB, dtype=torch.int8),
        routes={},
    )
    lm_head = layer(method())
    head = DraftHead(vocabulary, LMHeadRows.of(lm_head, torch.float32), processor(), SLOTS)
    head.router.lists[[1, 2]] = torch.tensor([0, 1])
    slots = torch.tensor([2, 1])
    head.batch = SimpleNamespace(req_pool_indices=slots, forward_mode=ForwardMode.DECODE)
    hidden = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(2))

    def best() -> list[int]:
        logits = method().apply(lm_head, hidden)
        return [int(logits[0, 1::2].argmax()) * 2 + 1, int(logits[1, ::2].argmax()) * 2]

    head.score(hidden)
    assert head.next_ids[slots, 0, 0].tolist() == best()
    before = best()
    for name in ("weight", "qweight"):
        if hasattr(lm_head, name):
            getattr(lm_head, name).data = getattr(lm_head, name).data.flip(0)
    assert best() != before
    head.is_stale = True
    head.score(hidden)
    assert head.next_ids[slots, 0, 0].tolist() == best()


def test_a_plain_weight_is_read_where_it_lies():
    weight = torch.randn(VOCAB, WIDTH)
    plain = SimpleNamespace(weight=weight, shard_indices=None, quant_method=None)
    rows = LMHeadRows.of(plain, torch.bfloat16)
    assert rows.tensor is weight
    rows.refresh()
    assert rows.tensor is weight


@pytest.mark.parametrize(
    "fields",
    [
        {"weight": None},
        {"weight": torch.zeros(VOCAB, WIDTH, dtype=torch.int8)},
        {"weight": torch.zeros(VOCAB, WIDTH), "bias": torch.zeros(VOCAB)},
    ],
    ids=["nothing", "no method", "a bias"],
)
def test_rows_that_cannot_be_read(fields):
    assert LMHeadRows.of(SimpleNamespace(shard_indices=None, **fields), torch.float32) is None


@pytest.mark.parametrize(
    ("drawn", "together", "why"),
    [
        (False, False, None),
        (False, True, "without --enable-dp-lm-head"),
        # Whose log line is another's.
        (True, False, ""),
    ],
)
def test_where_drafts_are_scored_over_all_tokens(monkeypatch, caplog, drawn, together, why):
    spec = SimpleNamespace(speculative_use_rejection_sampling=drawn)
    monkeypatch.setattr(lm_head_rows, "get_spec", lambda: spec)
    of_all = processor()
    of_all.do_tensor_parallel_all_gather_dp_attn = together
    plain = SimpleNamespace(weight=torch.randn(VOCAB, WIDTH), shard_indices=None)
    with caplog.at_level(logging.INFO):
        rows = LMHeadRows.for_drafts(plain, of_all, torch.float32)
    assert (rows is None) == (why is not None)
    assert (why or "") in caplog.text
    assert bool(caplog.text) == bool(why)
