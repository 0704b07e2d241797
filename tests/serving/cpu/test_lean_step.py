"""Which servers and batches go from sweep to sweep, and what a step leaves, without a server.

That both ways give the same tokens is shown by tests/served/test_lean_step.py.
Alone: pytest tests/serving/cpu/test_lean_step.py
"""

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.models.gemma3_causal import Gemma3ForCausalLM
from sglang.srt.models.llama import LlamaForCausalLM
from sglang.srt.models.qwen2 import Qwen2ForCausalLM
from sglang.srt.models.qwen3 import Qwen3ForCausalLM
from sglang.srt.speculative import spec_utils

from fastmtp_sglang.contract.tree_shape import TreeShape
from fastmtp_sglang.serving.cpu import lean_step, tree
from fastmtp_sglang.serving.cpu.attention import CpuAttnBackend
from fastmtp_sglang.serving.cpu.lean_step import LeanStep
from fastmtp_sglang.serving.cpu.packed_linear import PackedLMHeadMethod
from fastmtp_sglang.serving.drafting.draft_head import DraftHead
from fastmtp_sglang.serving.drafting.head_model import FastMTPHead

WIDTH, VOCAB = 4, 10


class Llama(LlamaForCausalLM):
    """Another model, which may do more."""


class Processor(LogitsProcessor):
    """Another processor."""


class Head(FastMTPHead):
    """Another head."""


def module(kind: type, **fields):
    made = object.__new__(kind)
    torch.nn.Module.__init__(made)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.fixture
def machine(monkeypatch):
    """Parallel sizes and features of a server, as SGLang tells them."""
    made = SimpleNamespace(tp_size=1, pp_size=1, dp_attention=False, enable_lora=False)
    monkeypatch.setattr(lean_step, "get_parallel", lambda: made)
    monkeypatch.setattr(lean_step, "get_lora", lambda: made)
    monkeypatch.setattr(lean_step, "is_dp_attention_enabled", lambda: made.dp_attention)
    return made


@pytest.fixture
def parts(machine):
    """What `LeanStep.possible` looks at, of a plain server on a CPU."""
    return SimpleNamespace(
        machine=machine,
        model=LlamaForCausalLM,
        head=FastMTPHead,
        attention=CpuAttnBackend,
        draft_head=object.__new__(DraftHead),
        watermark=None,
        processor=LogitsProcessor,
        lm_head=PackedLMHeadMethod(),
        logits={
            "logit_scale": None,
            "final_logit_softcapping": None,
            "use_fp32_lm_head": False,
            "do_tensor_parallel_all_gather": False,
        },
    )


def possible(parts, *, tied: bool = True) -> bool:
    model = module(parts.model)
    model.logits_processor = module(parts.processor, **parts.logits)
    model.lm_head = module(torch.nn.Module, quant_method=parts.lm_head)
    embedding = model.lm_head if tied else module(torch.nn.Module)
    model.model = module(torch.nn.Module, embed_tokens=embedding)
    target = SimpleNamespace(
        model=model,
        attn_backend=object.__new__(parts.attention),
        watermark_state=parts.watermark,
    )
    return LeanStep.possible(target, SimpleNamespace(model=module(parts.head)), parts.draft_head)


@pytest.mark.parametrize(
    "model", [LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Gemma3ForCausalLM]
)
def test_plain_servers_are_taken(parts, model):
    parts.model = model
    assert possible(parts)
    # Gemma's embedding makes its logits.
    assert possible(parts, tied=False) == (model is not Gemma3ForCausalLM)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", Llama),
        ("head", Head),
        ("attention", type("Other", (CpuAttnBackend,), {})),
        ("draft_head", None),
        ("watermark", "state"),
        ("processor", Processor),
        ("lm_head", None),
    ],
)
def test_other_parts_go_sglangs_way(parts, part, value):
    """A class derived from a known one may do what no sweep does."""
    setattr(parts, part, value)
    assert not possible(parts)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_scale", 0.5),
        ("final_logit_softcapping", 30.0),
        ("use_fp32_lm_head", True),
        ("do_tensor_parallel_all_gather", True),
    ],
)
def test_logits_that_are_more_than_a_product_go_sglangs_way(parts, name, value):
    parts.logits[name] = value
    assert not possible(parts)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tp_size", 2), ("pp_size", 2), ("dp_attention", True), ("enable_lora", True)],
)
def test_several_ranks_and_adapters_go_sglangs_way(parts, name, value):
    setattr(parts.machine, name, value)
    assert not possible(parts)


class Tape:
    """Returns what a test wants, and keeps what it was given."""

    def __init__(self, output: torch.Tensor) -> None:
        self.output = output

    def sweep(self, rows, inputs, **of_rows):
        self.rows, self.inputs, self.of_rows = rows, inputs, of_rows
        assert all(len(values) == rows for values in of_rows.values())
        assert all(values.is_contiguous() for values in (*inputs, *of_rows.values()))
        return self.output


@pytest.fixture
def tapes(monkeypatch) -> dict[ForwardMode, Tape]:
    """What has been recorded, by forward mode."""
    made: dict[ForwardMode, Tape] = {}
    monkeypatch.setattr(lean_step.replay, "tape", lambda owner, mode: made.get(mode))
    return made


@pytest.fixture
def step(monkeypatch) -> LeanStep:
    # As the platform does: SGLang's is compiled, which takes a C++ compiler and seconds.
    compiled = spec_utils._select_top_k_tokens_later
    plain = getattr(compiled, "_torchdynamo_orig_callable", compiled)
    monkeypatch.setattr(spec_utils, "_select_top_k_tokens_later", plain)

    class Method:
        def apply(self, layer, hidden):
            return torch.nn.functional.pad(hidden, (0, VOCAB + 2 - WIDTH))

    lm_head = SimpleNamespace(quant_method=Method())
    processor = SimpleNamespace(vocab_size=VOCAB)
    model = SimpleNamespace(model="body", lm_head=lm_head, logits_processor=processor)
    table = torch.arange(6 * 40, dtype=torch.int32).view(6, 40)
    target = SimpleNamespace(
        model=model,
        token_to_kv_pool_allocator="allocator",
        req_to_token_pool=SimpleNamespace(req_to_token=table),
    )
    # Each branch of a request drafts the same two tokens.
    next_ids = (4 * torch.arange(6).view(6, 1, 1) + torch.arange(2)).repeat(1, 2, 1)
    draft_head = SimpleNamespace(batch=None, slots=None, next_ids=next_ids)
    draft_head.score = lambda states: states[:, :2].log()
    return LeanStep(target, SimpleNamespace(model="head"), draft_head)


def batch(**fields) -> SimpleNamespace:
    """Two requests, in slots 4 and 2."""
    values = {
        "forward_mode": ForwardMode.DECODE,
        "has_grammar": False,
        "return_logprob": False,
        "return_hidden_states": False,
        "req_pool_indices": torch.tensor([4, 2]),
        "seq_lens": torch.tensor([7, 20]),
    }
    return SimpleNamespace(**values | fields)


def test_ordinary_batches_suit_once_a_pass_is_recorded(step, tapes):
    assert not step.suits(batch())
    tapes[ForwardMode.TARGET_VERIFY] = Tape(torch.zeros(0))
    assert step.suits(batch())
    assert not step.can_extend()
    tapes[ForwardMode.DRAFT_EXTEND_V2] = Tape(torch.zeros(0))
    assert step.can_extend()


@pytest.mark.parametrize(
    "fields",
    [
        {"has_grammar": True},
        {"return_logprob": True},
        {"return_hidden_states": True},
        {"forward_mode": ForwardMode.IDLE},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_batches_that_want_more_do_not(step, tapes, fields):
    tapes[ForwardMode.TARGET_VERIFY] = Tape(torch.zeros(0))
    assert not step.suits(batch(**fields))


def first_drafts(top_k: int) -> SimpleNamespace:
    """What the step before leaves; branch 0 of each slot has the ids of `step`'s `next_ids`."""
    return SimpleNamespace(
        bonus_tokens=torch.tensor([8, 9], dtype=torch.int32),
        topk_p=torch.tensor([[0.6, 0.3], [0.5, 0.4]])[:, :top_k],
        topk_index=torch.tensor([[0, 1], [0, 1]])[:, :top_k],
        hidden_states=torch.ones(2, WIDTH),
    )


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_chain_is_what_sglang_builds(step, tapes, num_steps):
    given = batch(spec_info=first_drafts(1))
    tapes[ForwardMode.DECODE] = tape = Tape(torch.tensor([[0.2, 0.7, 0.0, 0.1]] * 2))
    verified = step.draft(given, TreeShape(num_steps, 1, num_steps + 1))
    # Each slot's first draft, and then the likelier one of two.
    drafts = [[16, *[17] * (num_steps - 1)], [8, *[9] * (num_steps - 1)]]
    assert verified.draft_token.tolist() == [8, *drafts[0], 9, *drafts[1]]
    n, shape = num_steps + 1, (2, num_steps + 1)
    mask, positions = torch.zeros(2 * n * n, dtype=torch.bool), torch.zeros(2 * n, dtype=torch.long)
    index, child, sibling = (torch.zeros(*shape, dtype=torch.int64) for _ in range(3))
    tree.build_tree(
        torch.arange(-1, num_steps - 1).repeat(2, 1), torch.arange(num_steps).repeat(2, 1),
        given.seq_lens.int(), mask, positions, index, child, sibling, 1, num_steps, n, None,
    )  # fmt: skip
    for ours, theirs in (
        (verified.custom_mask, mask),
        (verified.positions, positions),
        (verified.retrieve_index, index),
        (verified.retrieve_next_token, child),
        (verified.retrieve_next_sibling, sibling),
    ):
        assert torch.equal(ours, theirs)
    assert (verified.topk, verified.spec_steps, verified.draft_token_num) == (1, num_steps, n)
    if num_steps > 1:
        last = num_steps - 2
        assert tape.of_rows["ids"].tolist() == [row[last] for row in drafts]
        assert tape.of_rows["positions"].tolist() == [7 + last, 20 + last]
        assert tape.of_rows["slots"].tolist() == [4 * 40 + 7 + last, 2 * 40 + 20 + last]


def test_a_tree_drafts_upon_all_branches_and_verifies_the_likeliest(step, tapes):
    """Two steps of two branches; the children of a draft are 0.7 and 0.2 as likely as it."""
    given = batch(spec_info=first_drafts(2))
    tapes[ForwardMode.DECODE] = tape = Tape(torch.tensor([[0.2, 0.7, 0.0, 0.1]] * 4))
    verified = step.draft(given, TreeShape(2, 2, 4))
    assert tape.of_rows["ids"].tolist() == [16, 17, 8, 9]
    assert tape.of_rows["positions"].tolist() == [7, 7, 20, 20]
    # The branches of a request have two neighbouring slots each.
    assert tape.of_rows["slots"].tolist() == [4 * 40 + 7, 4 * 40 + 9, 2 * 40 + 20, 2 * 40 + 22]
    assert tape.of_rows["visible"][:, 1:].tolist() == [[7, 1], [7, 4], [20, 1], [20, 4]]
    # 0.6, 0.42, 0.3 (before 0.21) and 0.5, 0.4, 0.35: both firsts and the first one's likelier.
    assert verified.draft_token.tolist() == [8, 16, 17, 17, 9, 8, 9, 9]
    assert verified.positions.tolist() == [7, 8, 8, 9, 20, 21, 21, 22]
    assert verified.retrieve_next_token.tolist() == [[1, 3, -1, -1]] * 2
    assert verified.retrieve_next_sibling.tolist() == [[-1, 2, -1, -1]] * 2
    assert step._draft_head.batch is given
    assert torch.equal(step._draft_head.slots, given.req_pool_indices)


def test_the_branches_of_one_request(step, tapes):
    """What is expanded over them lies in memory row by row."""
    first = first_drafts(2)
    alone = SimpleNamespace(**{name: rows[:1] for name, rows in vars(first).items()})
    given = batch(spec_info=alone, req_pool_indices=torch.tensor([4]), seq_lens=torch.tensor([7]))
    tapes[ForwardMode.DECODE] = Tape(torch.tensor([[0.2, 0.7, 0.0, 0.1]] * 2))
    assert step.draft(given, TreeShape(2, 2, 4)).draft_token.tolist() == [8, 16, 17, 17]


def test_a_step_can_be_drafted_once_the_heads_pass_is_recorded(step, tapes):
    assert step.can_draft(1)
    assert not step.can_draft(2)
    tapes[ForwardMode.DECODE] = Tape(torch.zeros(0))
    assert step.can_draft(2)


def test_a_verification(step, tapes, monkeypatch):
    """The first request has its draft accepted, the second not."""
    given = batch(spec_info=first_drafts(1))
    given.spec_info = step.draft(given, TreeShape(1, 1, 2))
    hidden = torch.arange(4.0 * WIDTH).view(4, WIDTH)
    tapes[ForwardMode.TARGET_VERIFY] = tape = Tape(hidden)
    sampled = torch.tensor([16, 5, 6, 0], dtype=torch.int32)
    accepted = torch.tensor([[0, 1], [2, -1]], dtype=torch.int32)
    lengths = torch.tensor([2, 1], dtype=torch.int32)

    def sample(verify_input, batch, output, _):
        assert output.next_token_logits.shape == (4, VOCAB)  # without the padding
        return sampled, lengths, accepted

    monkeypatch.setattr(lean_step.eagle_worker_common, "eagle_sample", sample)
    monkeypatch.setattr(lean_step, "maybe_detect_nan", lambda *_: None)
    monkeypatch.setattr(lean_step, "maybe_detect_inf", lambda *_: None)
    result = step.verify(given)
    # Keys go behind those that each request has.
    assert tape.of_rows["slots"].tolist() == [4 * 40 + 7, 4 * 40 + 8, 2 * 40 + 20, 2 * 40 + 21]
    assert tape.of_rows["positions"].tolist() == [7, 8, 20, 21]
    assert result.next_draft_input.bonus_tokens.tolist() == [5, 6]
    assert result.new_seq_lens.tolist() == [9, 21]
    assert result.logits_output.hidden_states is hidden
    assert (result.accept_lens, result.accept_index) == (lengths, accepted)


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_draft_extension(step, tapes, top_k):
    """The next drafts follow each request's last accepted row."""
    states = torch.rand(6, WIDTH, generator=torch.Generator().manual_seed(0))
    tapes[ForwardMode.DRAFT_EXTEND_V2] = tape = Tape(states)
    hidden = torch.ones(6, WIDTH)
    result = SimpleNamespace(
        next_token_ids=torch.arange(6, dtype=torch.int32),
        accept_lens=torch.tensor([3, 1], dtype=torch.int32),
        logits_output=SimpleNamespace(hidden_states=hidden),
        next_draft_input=SimpleNamespace(),
    )
    given = batch(out_cache_loc=torch.arange(6))
    step.extend(given, result, top_k)
    assert tape.of_rows["positions"].tolist() == [7, 8, 9, 20, 21, 22]
    assert tape.of_rows["ids"].tolist() == list(range(6))
    assert tape.inputs[0] is hidden
    following = result.next_draft_input
    assert torch.equal(following.hidden_states, states[[2, 3]])
    assert step._draft_head.batch is given
    if top_k == 1:
        assert (following.topk_index.tolist(), following.topk_p.tolist()) == (
            [[0]] * 2,
            [[1.0]] * 2,
        )
    else:
        shares = states[[2, 3], :2]
        assert torch.equal(following.topk_index, shares.argsort(dim=1, descending=True))
        torch.testing.assert_close(following.topk_p, shares.sort(dim=1, descending=True).values)
