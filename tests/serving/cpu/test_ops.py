"""Torch versions of SGLang's device operators, against loops over single elements.

Every case is random from SEED. Alone: pytest tests/serving/cpu/test_ops.py
"""

import importlib
import inspect
from types import ModuleType

import pytest
import torch

from fastmtp_kernels.torch_draft import TorchDraftLogits
from fastmtp_sglang.contract import compat
from fastmtp_sglang.serving.cpu import attention, fused, ops, own_tokens
from fastmtp_sglang.serving.routing.router import Router

SEED = 20250918
CASES = range(12)


def generator(case: int) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + case)


def integers(low: int, high: int, shape: tuple[int, ...], source: torch.Generator) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=source)


def request_table(source: torch.Generator) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Batch size, row of each request, int32 table of 12 rows and 64 positions."""
    bs = int(integers(1, 9, (), source))
    rows = torch.randperm(12, generator=source)[:bs]
    return bs, rows, integers(1, 10_000, (12, 64), source).to(torch.int32)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_assign_extend_cache_locs(case, dtype):
    source = generator(case)
    bs, rows, table = request_table(source)
    n = int(integers(1, 9, (), source))
    starts = integers(0, 64 - n, (bs,), source)
    actual = ops.assign_extend_cache_locs(
        req_pool_indices=rows,
        req_to_token=table,
        start_offset=starts.to(dtype),
        end_offset=starts + n,
        batch_size=bs,
        draft_token_num=n,
        device="cpu",
    )
    expected = [int(table[rows[i], int(starts[i]) + j]) for i in range(bs) for j in range(n)]
    assert actual.dtype == torch.int64
    assert actual.tolist() == expected


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_positions", [False, True])
def test_assign_draft_cache_locs_contiguous(case, with_positions):
    source = generator(case)
    bs, rows, table = request_table(source)
    topk, columns = int(integers(1, 4, (), source)), int(integers(1, 5, (), source))
    lengths = integers(0, 64 - topk * columns, (bs,), source).to(torch.int32)
    slots = torch.full((bs * topk * columns,), -1)
    positions = torch.full((bs * topk,), -1) if with_positions else None
    mrope = torch.full((3, bs * topk), -1) if with_positions else None
    ops.assign_draft_cache_locs_contiguous(
        rows, table, lengths, slots, topk, columns, positions=positions, mrope=mrope
    )
    expected = [
        int(table[rows[i], int(lengths[i]) + j]) for i in range(bs) for j in range(topk * columns)
    ]
    assert slots.tolist() == expected
    if with_positions:
        first = [int(lengths[i]) for i in range(bs) for _ in range(topk)]
        assert positions.tolist() == first
        assert mrope.tolist() == [first] * 3


@pytest.mark.parametrize("case", CASES)
def test_assign_req_to_token_pool(case):
    """Ragged: a request may get no slot at all, and more slots than are needed may be given."""
    source = generator(case)
    bs, rows, table = request_table(source)
    starts = integers(0, 50, (bs,), source).to(torch.int32)
    ends = starts + integers(0, 14, (bs,), source).to(torch.int32)
    slots = integers(10_000, 20_000, (int((ends - starts).sum()) + 3,), source)
    expected, given = table.clone(), iter(slots.tolist())
    for i in range(bs):
        for position in range(int(starts[i]), int(ends[i])):
            expected[rows[i], position] = next(given)
    ops.assign_req_to_token_pool(rows, table, starts, ends, slots, bs)
    assert torch.equal(table, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_hidden", [False, True])
def test_gather_spec_extras(case, with_hidden):
    source = generator(case)
    buffers = [
        torch.rand(20, 1, generator=source),
        integers(0, 100, (20, 1), source),
        integers(0, 100, (20,), source).to(torch.int32),
        torch.rand(20, 8, generator=source) if with_hidden else None,
    ]
    indices = integers(0, 20, (int(integers(0, 9, (), source)),), source)
    gathered = ops.gather_spec_extras(indices, *buffers)
    for buffer, result in zip(buffers, gathered, strict=True):
        if buffer is None:
            assert result is None
            continue
        assert result.dtype == buffer.dtype
        assert result.shape[1:] == buffer.shape[1:]
        assert result.tolist() == [buffer[i].tolist() for i in indices.tolist()]


@pytest.mark.parametrize("case", CASES)
def test_fill_bonus_tokens(case):
    source = generator(case)
    bs, stride = int(integers(1, 9, (), source)), int(integers(1, 9, (), source))
    accepted = integers(0, 1000, (bs * stride,), source).to(torch.int32)
    lengths = integers(1, stride + 1, (bs,), source).to(torch.int32)
    bonus = torch.full((bs,), -1, dtype=torch.int32)
    ops.fill_bonus_tokens(accepted, lengths, bonus, stride, bs)
    assert bonus.tolist() == [int(accepted[i * stride + int(lengths[i]) - 1]) for i in range(bs)]


# --- where they are installed ---

# Where SGLang defines what each replacement stands for; the last ones are None on a CPU.
ORIGINALS = {
    "assign_req_to_token_pool_func": "sglang.srt.mem_cache.allocation",
    "gather_spec_extras": "sglang.kernels.ops.speculative.gather_spec_extras",
    "assign_draft_cache_locs_contiguous_func": "sglang.kernels.ops.speculative.cache_locs",
    "fill_bonus_tokens_func": "sglang.kernels.ops.speculative.eagle",
    "build_tree_kernel_efficient_func": "sglang.kernels.ops.speculative.spec_tree",
    "verify_tree_greedy_func": "sglang.kernels.ops.speculative.spec_tree",
    "tree_speculative_sampling_target_only": "sglang.kernels.ops.speculative.sampling",
    "chain_speculative_sampling_triton": "sglang.kernels.ops.speculative.reject_sampling",
    "duplicate_prefix_tail_to_draft_branches": "sglang.srt.speculative.eagle_worker_common",
    "fill_front_out_cache_loc_func": "sglang.kernels.ops.speculative.cache_locs",
    "fill_accept_out_cache_loc_func": "sglang.kernels.ops.speculative.eagle",
    "row_argmax": "sglang.kernels.ops.speculative.row_argmax",
}


def parameters(function) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", ORIGINALS)
def test_a_replacement_takes_what_the_original_takes(name):
    """Names and order; two are called by position alone, one of which takes anything."""
    (replacement,) = (new for _, old, new in ops._REPLACEMENTS if old == name)
    original = compat._definitions(ORIGINALS[name])[name]
    if name == "duplicate_prefix_tail_to_draft_branches":
        inspect.signature(replacement).bind(*original)
    elif name == "gather_spec_extras":
        assert len(parameters(replacement)) == len(original)
    else:
        assert parameters(replacement) == original


@pytest.mark.parametrize("name", ["top_k_renorm_prob", "top_p_renorm_prob"])
def test_the_renormalizations_are_called_with_two_arguments(name):
    """`eagle_sample` gives (probabilities, limits) by position."""
    (replacement,) = (new for _, old, new in ops._REPLACEMENTS if old == name)
    assert len(parameters(replacement)) == 2


def test_the_platform_function_takes_what_sglang_gives_it():
    given = compat._definitions("sglang.kernels.ops.speculative.cache_locs")
    inspect.signature(ops.assign_extend_cache_locs).bind(
        **dict.fromkeys(given["assign_extend_cache_locs_func"])
    )


def test_every_replacement_is_compared_above():
    names = {name for _, name, _ in ops._REPLACEMENTS}
    assert names == {*ORIGINALS, "top_k_renorm_prob", "top_p_renorm_prob"}


@pytest.fixture
def restored(monkeypatch) -> pytest.MonkeyPatch:
    """Puts back, after the test, everything that `install` sets."""
    from sglang.srt.speculative import spec_utils
    from sglang.srt.speculative.draft_utils import DraftBackendFactory

    for module, name, _ in ops._REPLACEMENTS:
        monkeypatch.setattr(f"{module}.{name}", getattr(importlib.import_module(module), name))
    for name in ("create_decode_backend", "create_draft_extend_backend"):
        monkeypatch.setattr(DraftBackendFactory, name, getattr(DraftBackendFactory, name))
    name = "_select_top_k_tokens_later"
    monkeypatch.setattr(spec_utils, name, getattr(spec_utils, name))
    for owner, names in (
        (TorchDraftLogits, ("packer", "chooser", "gatherer", "joiner")),
        (Router, ("advance_on_host", "remember_on_host")),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, staticmethod(getattr(owner, name)))
    return monkeypatch


def test_install(restored):
    from sglang.srt.speculative import spec_utils

    unrelated = ModuleType("unrelated")
    unrelated.nothing = None
    restored.setitem(importlib.sys.modules, "unrelated", unrelated)

    ops.install()
    once = spec_utils._select_top_k_tokens_later
    ops.install()

    for module, name, replacement in ops._REPLACEMENTS:
        assert getattr(importlib.import_module(module), name) is replacement
    assert unrelated.nothing is None  # SGLang's hook registry would have replaced it
    assert spec_utils._select_top_k_tokens_later is once
    assert not hasattr(once, "_torchdynamo_orig_callable")
    assert TorchDraftLogits.packer is fused.draft_product
    assert TorchDraftLogits.gatherer is own_tokens.gathered
    assert TorchDraftLogits.joiner is own_tokens.joined
    assert Router.remember_on_host is own_tokens.remember


def test_eager_token_selection_follows_a_chain(restored):
    """Nothing is compiled: a serving machine need not have a C++ compiler."""
    from sglang.srt.speculative import spec_utils

    ops.install()
    hidden = torch.arange(6.0).view(3, 2)
    tokens, states, scores, _ = spec_utils.select_top_k_tokens(
        1, torch.full((3, 1), 0.5), torch.tensor([[7], [8], [9]]), hidden, torch.ones(3, 1), 1
    )
    assert tokens.tolist() == [7, 8, 9]
    assert torch.equal(states, hidden)
    assert scores.flatten().tolist() == [0.5] * 3


def test_draft_backends(restored):
    from types import SimpleNamespace

    from sglang.srt.speculative.draft_utils import DraftBackendFactory

    ops.install()
    runner = SimpleNamespace(
        req_to_token_pool=SimpleNamespace(req_to_token=torch.zeros(1, 8, dtype=torch.int32)),
        token_to_kv_pool=None,
        model_config=SimpleNamespace(context_len=8),
    )
    factory = object.__new__(DraftBackendFactory)
    factory.draft_model_runner = runner
    factory.topk = 2
    factory.speculative_num_steps = 4
    drafting = factory.create_decode_backend()
    assert isinstance(drafting, attention.CpuDraftAttnBackend)
    assert len(drafting.attn_backends) == 3
    assert isinstance(factory.create_draft_extend_backend(), attention.CpuAttnBackend)
    factory.speculative_num_steps = 1  # the one draft comes from the draft-extend pass
    assert factory.create_decode_backend() is None
