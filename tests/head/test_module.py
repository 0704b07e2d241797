"""The head in plain torch: its draft chain, and its checkpoints.

Alone: pytest tests/head/test_module.py
"""

from functools import partial

import pytest
import tiny_models as models
import torch
from torch.nn.functional import gelu, silu
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head.checkpoint import init_head
from fastmtp_sglang.head.module import FastMTPHead

pytestmark = pytest.mark.heavy

SEED = 7


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
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


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary embedding of [T, heads, size] at positions 0..T-1, halves as pairs."""
    size = x.shape[-1]
    frequencies = theta ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    angles = torch.outer(torch.arange(len(x), dtype=x.dtype), frequencies).unsqueeze(1)
    first, second = x.chunk(2, dim=-1)
    return torch.cat(
        (
            first * angles.cos() - second * angles.sin(),
            second * angles.cos() + first * angles.sin(),
        ),
        dim=-1,
    )


def by_hand(
    w: dict[str, torch.Tensor], config, hidden: torch.Tensor, embeddings: torch.Tensor
) -> torch.Tensor:
    """The formulas of head/module.py, one sequence [T, D] in float64, from the weights alone."""
    eps, heads, size = config.rms_norm_eps, config.num_attention_heads, config.head_dim
    length, gemma = len(hidden), config.family == "gemma3_text"
    theta, scaling, window, activation = (
        (10_000.0, 24**-0.5, 8, partial(gelu, approximate="tanh"))
        if gemma
        else (config.rope_parameters["rope_theta"], size**-0.5, length, silu)
    )

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return rms_norm(x, w[f"{name}.weight"] + gemma, eps)

    embeddings = embeddings.clone()
    embeddings[0] = 0
    joined = torch.cat(
        (norm(hidden, "hidden_layernorm"), norm(embeddings, "token_layernorm")), dim=-1
    )
    x = joined @ w["input_proj.weight"].T

    def project(name: str) -> torch.Tensor:
        prefix = f"block.self_attn.{name}"
        rows = normed @ w[f"{prefix}_proj.weight"].T + w.get(f"{prefix}_proj.bias", 0)
        rows = rows.view(length, -1, size)
        # Qwen3 and Gemma normalize queries and keys.
        return norm(rows, f"{prefix}_norm") if f"{prefix}_norm.weight" in w else rows

    normed = norm(x, "block.input_layernorm")
    query, key = rotate(project("q"), theta), rotate(project("k"), theta)
    value = project("v")
    attended = torch.empty_like(query)
    for head in range(heads):
        shared = head // (heads // key.shape[1])
        for t in range(length):
            seen = slice(max(0, t + 1 - window), t + 1)
            scores = key[seen, shared] @ query[t, head] * scaling
            attended[t, head] = scores.softmax(0) @ value[seen, shared]
    output = attended.flatten(1) @ w["block.self_attn.o_proj.weight"].T
    if gemma:
        output = norm(output, "block.post_attention_layernorm")
    x = x + output

    before_mlp = "pre_feedforward" if gemma else "post_attention"
    normed = norm(x, f"block.{before_mlp}_layernorm")
    gate = activation(normed @ w["block.mlp.gate_proj.weight"].T)
    up = normed @ w["block.mlp.up_proj.weight"].T
    output = (gate * up) @ w["block.mlp.down_proj.weight"].T
    if gemma:
        output = norm(output, "block.post_feedforward_layernorm")
    return norm(x + output, "final_layernorm")


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_draft_chain_equals_the_formulas(tmp_path, family):
    """Without transformers: norm weights in 0.5..1.5, biases where the family has them."""
    models.random_head(models.target(tmp_path / "target", family), tmp_path / "head")
    head = FastMTPHead.from_pretrained(tmp_path / "head").double()
    weights = head.state_dict()
    assert any("bias" in name for name in weights) == (family == "qwen2")
    assert any("q_norm" in name for name in weights) == (family in ("qwen3", "gemma3_text"))
    generator = torch.Generator().manual_seed(SEED)
    length, vocabulary = 7, 500
    table, output = torch.randn(2, vocabulary, 64, dtype=torch.float64, generator=generator)
    hidden = torch.randn(length, 64, dtype=torch.float64, generator=generator)
    ids = torch.randint(0, vocabulary, (length,), generator=generator)
    tokens, states = head.draft(
        hidden.unsqueeze(0), ids.unsqueeze(0), lambda i: table[i], lambda x: x @ output.T, 4
    )
    for step in range(4):
        expected = by_hand(weights, head.config, hidden, table[ids])[-1]
        # Angles and norms of the transformers classes pass through float32.
        torch.testing.assert_close(states[step], expected, rtol=0, atol=2e-5)
        token = (output @ expected).argmax()
        assert tokens[step] == token
        hidden = torch.cat((hidden, expected.unsqueeze(0)))
        ids = torch.cat((ids, token.unsqueeze(0)))


def test_a_block_of_gemma_without_a_window(tmp_path):
    """It has the other rotary base, and sees everything."""
    layers = {"layer_types": ["sliding_attention", "full_attention"]}
    target = models.target(tmp_path / "target", "gemma3_text", **layers)
    models.random_head(target, tmp_path / "head")
    models.random_head(models.target(tmp_path / "windowed", "gemma3_text"), tmp_path / "other")
    full, windowed = (
        FastMTPHead.from_pretrained(tmp_path / name).double() for name in ("head", "other")
    )
    assert full.config.window is None
    assert windowed.config.window == 8
    windowed.load_state_dict(full.state_dict())
    generator = torch.Generator().manual_seed(SEED)
    hidden, embeddings = torch.randn(2, 1, 12, 64, dtype=torch.float64, generator=generator)

    def output(head: FastMTPHead, first: torch.Tensor) -> torch.Tensor:
        states = torch.cat((first, hidden[:, 1:]), dim=1)
        return head(states, embeddings, torch.arange(12).unsqueeze(0))[0]

    # Of the first key, position 7 still sees something; from 8 on only without a window.
    for head, last in ((full, 11), (windowed, 7)):
        changed = (output(head, hidden[:, :1]) != output(head, -hidden[:, :1])).any(-1)
        assert changed.nonzero().flatten().tolist() == list(range(last + 1))
    theta = torch.stack([h.rotary_emb(hidden, torch.ones(1, 1), k)[0][0, 0] for h, k in (
        (full, "full_attention"), (windowed, "sliding_attention"))])  # fmt: skip
    pairs = torch.arange(8) / 8
    expected = torch.stack([(base**-pairs).cos() for base in (1e6, 1e4)])
    torch.testing.assert_close(theta[:, :8].double(), expected.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("family", "count"), [("qwen3", 7), ("gemma3_text", 9)])
def test_each_norm_weight_counts(tmp_path, family, count):
    """A norm that is skipped or applied twice is invisible where its weight is 1."""
    models.random_head(models.target(tmp_path / "target", family), tmp_path / "head")
    head = FastMTPHead.from_pretrained(tmp_path / "head").double()
    generator = torch.Generator().manual_seed(SEED)
    hidden, embeddings = torch.randn(2, 1, 5, 64, dtype=torch.float64, generator=generator)
    positions = torch.arange(5).unsqueeze(0)
    before = head(hidden, embeddings, positions)
    norms = [name for name, _ in head.named_parameters() if "norm" in name]
    assert len(norms) == count
    for name in norms:
        weight = head.get_parameter(name)
        kept = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(kept.roll(1))
        assert not torch.allclose(head(hidden, embeddings, positions), before, atol=1e-4), name
        with torch.no_grad():
            weight.copy_(kept)


def test_padding_is_not_attended(tmp_path):
    """Training pads: a sequence in a padded batch gives what it gives alone."""
    models.random_head(models.target(tmp_path / "target"), tmp_path / "head")
    head = FastMTPHead.from_pretrained(tmp_path / "head").double()
    generator = torch.Generator().manual_seed(SEED)
    hidden, embeddings = torch.randn(2, 2, 6, 64, dtype=torch.float64, generator=generator)
    positions = torch.arange(6).expand(2, -1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    batch = head(hidden, embeddings, positions, attention_mask=mask)
    alone = head(hidden[1:, :4], embeddings[1:, :4], positions[1:, :4])
    torch.testing.assert_close(batch[1:, :4], alone, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        batch[:1], head(hidden[:1], embeddings[:1], positions[:1]), rtol=0, atol=1e-12
    )


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
