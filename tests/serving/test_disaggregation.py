"""What a node that prefills leaves, and what one that decodes makes of it.

SGLang's own buffers, functions and request fields stand between the two, instead of a transfer:
tests/served/test_disaggregation.py has one, where it is installed.
Alone: pytest tests/serving/test_disaggregation.py
"""

from types import SimpleNamespace

import pytest
import torch
from logits_processors import processor
from sglang.srt.disaggregation.utils import MetadataBuffers
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang.srt.speculative import eagle_disaggregation
from sglang.srt.speculative.eagle_info import EagleDraftInput

from fastmtp_sglang.serving import disaggregation
from fastmtp_sglang.serving.algorithm import FastMTPAlgorithm
from fastmtp_sglang.serving.drafting.draft_head import DraftHead, NextTokenIds
from fastmtp_sglang.serving.drafting.lm_head_rows import LMHeadRows
from fastmtp_sglang.serving.verification.verification import Verification
from fastmtp_sglang.vocabulary.draft_vocabulary import DraftVocabulary
from fastmtp_sglang.vocabulary.scripts import Script

VOCAB, WIDTH, SLOTS, TOP_K = 96, 16, 8, 3


class Context:
    """SGLang's runtime context, as far as it is read here."""

    def __init__(self) -> None:
        self.spec = SimpleNamespace(
            speculative_eagle_topk=TOP_K,
            enable_multi_layer_eagle=False,
            speculative_use_rejection_sampling=False,
        )
        self.chosen: list[int] = []

    def override(self, source: str, speculative_eagle_topk: int) -> None:
        self.spec.speculative_eagle_topk = speculative_eagle_topk
        self.chosen.append(speculative_eagle_topk)


@pytest.fixture
def context(monkeypatch) -> Context:
    made = Context()
    for module in (disaggregation, eagle_disaggregation):
        monkeypatch.setattr(module, "get_spec", lambda: made.spec)
    monkeypatch.setattr(disaggregation, "get_context", lambda: made)
    monkeypatch.setattr(disaggregation, "_arrivals", None)
    return made


def node(monkeypatch, mode: str) -> None:
    monkeypatch.setattr(
        disaggregation, "get_disagg", lambda: SimpleNamespace(disaggregation_mode=mode)
    )


def head() -> DraftHead:
    vocabulary = DraftVocabulary(
        vocab_size=VOCAB,
        tokenizer_fingerprint="sha256:none",
        ids={"en": torch.arange(0, VOCAB, 2), "zh": torch.arange(1, VOCAB, 2)},
        # Odd ids are Chinese.
        token_scripts=torch.tensor([Script.LATIN, Script.HAN] * (VOCAB // 2), dtype=torch.int8),
        routes={"en": "en", "zh": "zh"},
    )
    weight = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0))
    lm_head = SimpleNamespace(
        weight=weight,
        shard_indices=SimpleNamespace(org_vocab_start_index=0, org_vocab_end_index=VOCAB),
    )
    return DraftHead(vocabulary, LMHeadRows.of(lm_head, weight.dtype), processor(), SLOTS, TOP_K)


class Request:
    """What is read of SGLang's `Req` on both sides."""

    def __init__(self, prompt: list[int], **sampling) -> None:
        self.origin_input_ids, self.output_ids = prompt, [7]
        self.sampling_params = SamplingParams(**sampling)
        self.sampling_params.stop_token_ids = None
        self.custom_logit_processor = self.output_dsa_topk_indices = None
        self.return_logprob = self.return_sampling_mask = False
        self.cached_tokens = self.cached_tokens_device = 0
        self.cached_tokens_host = self.cached_tokens_storage = 0
        self.eos_token_ids = self.tokenizer = None
        self.bootstrap_room = 0

    def get_mm_token_counts(self) -> tuple[int, int, int]:
        return 0, 0, 0


def test_drafts_cross_by_their_token_ids(monkeypatch, context):
    """From the slots of one node through SGLang's buffers to other slots of another."""
    there, here = head(), head()
    source, target = torch.tensor([1, 2]), torch.tensor([5, 3])
    requests = [Request([2, 4, 6, 8] * 8), Request([1, 3, 5, 7] * 8, frequency_penalty=0.5)]
    there.router.start(source.tolist(), requests)
    there.batch = SimpleNamespace(req_pool_indices=source, forward_mode=ForwardMode.EXTEND)
    there.slots = source
    hidden = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1))
    shares = there.score(hidden).exp()
    columns = torch.arange(TOP_K).repeat(2, 1)
    drafted = EagleDraftInput(topk_p=shares, topk_index=columns, hidden_states=hidden)
    node(monkeypatch, "prefill")
    disaggregation.name_drafts(drafted, NextTokenIds(there))
    expected = there.next_ids[source, 0]
    assert drafted.topk_index.tolist() == expected.tolist() != columns.tolist()

    buffers = MetadataBuffers(2, WIDTH, torch.float32, 8)
    for place, request in enumerate(requests):
        request.metadata_buffer_index = place
        request.output_topk_p, request.output_topk_index = shares[place], drafted.topk_index[place]
        request.hidden_states_tensor = hidden[place]
        buffers.set_buf(request)
    for place, request in enumerate(requests):
        names = [name for name in vars(buffers) if name.startswith("output_")]
        assert {"output_topk_p", "output_topk_index", "output_hidden_states"} <= set(names)
        request.output_topk_p = buffers.output_topk_p[place].clone()
        request.output_topk_index = buffers.output_topk_index[place].clone()
        request.hidden_states_tensor = buffers.output_hidden_states[place].clone()

    verification = Verification(VOCAB, "cpu")
    worker = SimpleNamespace(draft_head=here, largest=SimpleNamespace(top_k=TOP_K))
    disaggregation.Arrivals(verification, worker).install()
    # A shape of fewer branches is in use.
    context.spec.speculative_eagle_topk = 1
    batch = SimpleNamespace(
        reqs=requests,
        req_pool_indices=target,
        device="cpu",
        enable_overlap=False,
        model_config=SimpleNamespace(hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"])),
    )
    arrived = FastMTPAlgorithm.build_disagg_draft_input(
        None, batch, torch.tensor([7, 7]), SimpleNamespace()
    )
    assert context.chosen == [TOP_K, 1]
    assert here.next_ids[target, 0].tolist() == expected.tolist()
    here.slots = target
    assert NextTokenIds(here)[arrived.topk_index].tolist() == expected.tolist()
    assert torch.equal(arrived.topk_p, shares)
    assert torch.equal(arrived.hidden_states, hidden)
    assert here.router.lists[target].tolist() == there.router.lists[source].tolist() == [0, 1]
    # Of the second request the first token is counted.
    (row,) = verification.penalties.select(requests[1:]).rows.tolist()
    assert verification.penalties._frequency[row].nonzero().flatten().tolist() == [7]
    assert verification.penalties.select(requests[:1]) is None


@pytest.mark.parametrize("mode", ["null", "decode"])
def test_other_nodes_keep_columns(monkeypatch, mode):
    node(monkeypatch, mode)
    drafted = SimpleNamespace(topk_index=torch.zeros(1, 1, dtype=torch.int64))
    disaggregation.name_drafts(drafted, NextTokenIds(SimpleNamespace()))
    assert drafted.topk_index.tolist() == [[0]]


def test_ids_of_the_full_vocabulary_are_ids_already(monkeypatch):
    node(monkeypatch, "prefill")
    drafted = SimpleNamespace(topk_index=torch.tensor([[42]]))
    disaggregation.name_drafts(drafted, None)
    assert drafted.topk_index.tolist() == [[42]]
