"""The head's own part of SGLang's model: what it joins, and which tensors it takes.

The whole of it is compared with `head.module` where it is served (tests/served/test_families.py).
Alone: pytest tests/serving/drafting/test_head_model.py
"""

from types import SimpleNamespace

import pytest
import torch
import transformers
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from torch import nn

from fastmtp_sglang.errors import FastMTPError
from fastmtp_sglang.head import module
from fastmtp_sglang.head.config import FastMTPConfig
from fastmtp_sglang.serving.drafting import head_model
from fastmtp_sglang.serving.drafting.head_model import FastMTPHead

SEED = 20250918
WIDTH, EPS = 8, 1e-5
CONFIGS = {
    "llama": (transformers.LlamaConfig, "LlamaForCausalLM"),
    "qwen2": (transformers.Qwen2Config, "Qwen2ForCausalLM"),
    "qwen3": (transformers.Qwen3Config, "Qwen3ForCausalLM"),
}


def torch_head(family: str) -> module.FastMTPHead:
    kind, architecture = CONFIGS[family]
    target = kind(
        vocab_size=16,
        hidden_size=WIDTH,
        intermediate_size=12,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        rms_norm_eps=EPS,
        architectures=[architecture],
    )
    return module.FastMTPHead(FastMTPConfig.from_target(target, tokenizer_fingerprint="none"))


class Identity(nn.Module):
    """A block that only says where it was."""

    def forward(self, positions, hidden_states, forward_batch):
        self.positions = positions
        return hidden_states


def fused_name(name: str) -> str:
    for part, fused, _ in head_model._FUSED:
        name = name.replace(part, fused)
    return name


@pytest.fixture(params=CONFIGS)
def saved(request) -> dict[str, torch.Tensor]:
    """What `save_pretrained` stores of a head of each family, random from SEED."""
    torch.manual_seed(SEED)
    return {
        name: torch.randn_like(tensor)
        for name, tensor in torch_head(request.param).state_dict().items()
    }


@pytest.fixture
def head(saved) -> FastMTPHead:
    """Parameters as SGLang names them, the parts of a fused one side by side."""
    made = object.__new__(FastMTPHead)
    nn.Module.__init__(made)
    made.config, made._is_loaded = SimpleNamespace(family="a"), False
    parts: dict[str, list[str]] = {}
    for name in saved:
        parts.setdefault(fused_name(name), []).append(name)
    for name, of in parts.items():
        parameter = nn.Parameter(torch.zeros_like(torch.cat([saved[part] for part in of])))
        if len(of) > 1:
            shards = ["q", "k", "v"] if "qkv" in name else [0, 1]
            sizes = [len(saved[part]) for part in of]

            def loader(parameter, tensor, shard, shards=shards, sizes=sizes):
                parameter.data.split(sizes)[shards.index(shard)].copy_(tensor)

            parameter.weight_loader = loader
        *path, last = name.split(".")
        owner = made
        for attribute in path:
            if attribute not in owner._modules:
                owner.add_module(attribute, nn.Module())
            owner = owner._modules[attribute]
        owner.register_parameter(last, parameter)
    with torch.device("meta"):
        made.embed_tokens, made.lm_head = nn.Embedding(4, 4), nn.Linear(4, 4, bias=False)
    return made


def assert_loaded(head: FastMTPHead, saved: dict[str, torch.Tensor]) -> None:
    for name, parameter in head.named_parameters():
        if not parameter.is_meta:
            parts = [tensor for part, tensor in saved.items() if fused_name(part) == name]
            assert torch.equal(parameter, torch.cat(parts)), name


def test_every_tensor_of_a_saved_head_finds_its_place(head, saved):
    """Of any family: biases of Qwen2, norms of Qwen3's heads."""
    head.load_weights(saved.items())
    assert_loaded(head, saved)


def test_an_update_may_bring_some_of_them_and_the_targets(head, saved):
    head.load_weights(saved.items())
    name = "block.self_attn.k_proj.weight"
    saved[name] = saved[name] + 1
    target = ("model.layers.0.x", torch.ones(1)), ("lm_head.weight", torch.ones(1))
    head.load_weights([target[0], (name, saved[name]), target[1]])
    assert_loaded(head, saved)


class Embedding(nn.Embedding):
    """SGLang's, of one rank."""

    def __init__(self, rows: int, width: int, params_dtype: torch.dtype) -> None:
        super().__init__(rows, width, dtype=params_dtype)

    def weight_loader(self, parameter, tensor):
        parameter.data.copy_(tensor)


def test_a_later_stage_keeps_an_embedding_of_its_own(monkeypatch, head, saved):
    """Which updates of the target's weights reach; elsewhere they leave the head as it is."""
    monkeypatch.setattr(head_model, "VocabParallelEmbedding", Embedding)
    head.config = SimpleNamespace(family="a", vocab_size=6, hidden_size=4)
    head.load_weights(saved.items())
    update = "model.embed_tokens.weight", torch.full((6, 4), 3.0)
    head.load_weights([update])
    assert head.embed_tokens.weight.is_meta
    head.make_own_embedding(torch.bfloat16, "cpu")
    own = head.embed_tokens
    assert (own.weight.shape, own.weight.dtype) == ((6, 4), torch.bfloat16)
    # SGLang shares the target's twice.
    head.make_own_embedding(torch.bfloat16, "cpu")
    assert head.embed_tokens is own
    head.load_weights([update])
    assert (own.weight == 3).all()


@pytest.mark.parametrize("name", ["model.layers.0.x", "block.self_attn.x.weight", "lm_head.weight"])
def test_a_file_of_another_model(head, saved, name):
    """Before the head is loaded nothing of a target is expected either."""
    with pytest.raises(FastMTPError, match=rf"holds {name}, which a a head does not have"):
        head.load_weights([*saved.items(), (name, torch.ones(1))])


def test_an_unknown_tensor_of_an_update(head, saved):
    head.load_weights(saved.items())
    with pytest.raises(FastMTPError, match="do not belong together"):
        head.load_weights([("block.x.weight", torch.ones(1))])


def test_a_partial_head(head, saved):
    lost = ("block.mlp.up_proj.weight", "input_proj.weight")
    with pytest.raises(FastMTPError, match=f"lacks {', '.join(lost)}. Export it again"):
        head.load_weights((name, tensor) for name, tensor in saved.items() if name not in lost)


def test_the_token_at_position_zero_counts_for_nothing():
    hidden, tokens = torch.ones(3, 2), torch.full((3, 2), 5.0)
    tokens[1] = torch.nan
    joined = head_model.join(hidden, tokens, torch.tensor([4, 0, 1]))
    assert joined.tolist() == [[1, 1, 5, 5], [1, 1, 0, 0], [1, 1, 5, 5]]


@torch.no_grad()
def test_all_but_the_block_in_float64():
    """Norms of both inputs, the projection of them side by side, and the last norm."""
    source = torch.Generator().manual_seed(SEED)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source)

    made = object.__new__(FastMTPHead)
    nn.Module.__init__(made)
    for name in ("hidden_layernorm", "token_layernorm", "final_layernorm"):
        setattr(made, name, RMSNorm(WIDTH, eps=EPS))
        getattr(made, name).weight.data = random(WIDTH)
    made.input_proj = ReplicatedLinear(2 * WIDTH, WIDTH, bias=False)
    made.input_proj.weight.data = random(WIDTH, 2 * WIDTH)
    made.embed_tokens, made.block = nn.Embedding(16, WIDTH), Identity()
    ids, positions, hidden = torch.tensor([3, 9, 3]), torch.tensor([7, 0, 1]), random(3, WIDTH)

    def norm(x: torch.Tensor, layer: RMSNorm) -> torch.Tensor:
        return x * (x.square().mean(1, keepdim=True) + EPS).rsqrt() * layer.weight.double()

    tokens = norm(made.embed_tokens.weight[ids].double(), made.token_layernorm)
    tokens[1] = 0
    both = torch.cat((norm(hidden.double(), made.hidden_layernorm), tokens), 1)
    expected = norm(both @ made.input_proj.weight.double().T, made.final_layernorm)
    got = made.states(ids, positions, SimpleNamespace(residual_stream=None), hidden)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(made.block.positions, positions)


def test_the_targets_vocabulary_is_shared_and_not_copied():
    made = object.__new__(FastMTPHead)
    nn.Module.__init__(made)
    with torch.device("meta"):
        made.embed_tokens, made.lm_head = nn.Embedding(4, 2), nn.Linear(2, 4, bias=False)
    embed, rows = (nn.Parameter(torch.ones(4, 2)) for _ in range(2))
    made.set_embed_and_head(embed, rows)
    assert made.get_embed_and_head() == (embed, rows)
    own, target = made.lm_head, object.__new__(VocabParallelEmbedding)
    nn.Module.__init__(target)
    # Gemma's lm_head is torch's embedding, whose weight is shared already.
    made.set_lm_head_from_target(nn.Embedding(4, 2))
    assert made.lm_head is own
    made.set_lm_head_from_target(target)
    assert made.lm_head is target
