"""SGLang's verification as we call it, sampled many times: every emitted token's distribution.

`eagle_sample` is SGLang's; its operators are those of the CPU. The expected distribution is written
out by hand: temperature, then top-k and top-p of the whole distribution, then min-p. Draws start
from SEED, 200,000 trials a case, chi-square, p > 0.001.
Alone: pytest tests/serving/verification/test_verification.py
"""

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import chisquare
from sglang.srt import runtime_context
from sglang.srt.layers import dp_attention, sampler
from sglang.srt.sampling import penaltylib
from sglang.srt.speculative import eagle_utils, eagle_worker_common

from fastmtp_sglang.serving.cpu import ops, seeded
from fastmtp_sglang.serving.verification import verification
from fastmtp_sglang.serving.verification.seeds import Seeded, draw
from fastmtp_sglang.serving.verification.verification import Verification

SEED = 20250918
TRIALS = 200_000
VOCAB = 12
N = 3
LOGITS = 1.5 * torch.randn(N, VOCAB, generator=torch.Generator().manual_seed(SEED))


@pytest.fixture
def verifier(monkeypatch) -> Verification:
    """A Verification in SGLang's place, as in a server on one CPU; undone after the test."""
    spec = SimpleNamespace(
        speculative_use_rejection_sampling=False,
        speculative_accept_threshold_single=1.0,
        speculative_accept_threshold_acc=1.0,
    )
    execution = SimpleNamespace(
        kernel=SimpleNamespace(sampling_backend="pytorch"),
        deterministic=SimpleNamespace(rl_on_policy_target=None),
    )
    parallel = SimpleNamespace(tp_group=SimpleNamespace(world_size=1))
    monkeypatch.setattr(eagle_utils, "get_spec", lambda: spec)
    monkeypatch.setattr(verification, "get_exec", lambda: execution)
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: parallel)
    monkeypatch.setattr(dp_attention, "is_dp_attention_enabled", lambda: False)
    for module, name, replacement in ops._REPLACEMENTS:
        if module == eagle_utils.__name__:
            monkeypatch.setattr(eagle_utils, name, replacement)
    # What `install` sets for good is put back.
    for module, name in (
        (penaltylib, "BatchedPenalizerOrchestrator"),
        (eagle_worker_common, "eagle_sample"),
        *((eagle_utils, name) for name in verification._SAMPLERS),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    made = Verification(VOCAB, "cpu")
    made.install()
    return made


def request(**penalties) -> SimpleNamespace:
    defaults = {
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_new_tokens": 0,
    }
    params = SimpleNamespace(**defaults | penalties)
    return SimpleNamespace(sampling_params=params, custom_logit_processor=None)


def sample(
    drafts: list[int],
    *,
    temperature=1.0,
    top_k=1 << 30,
    top_p=1.0,
    min_p=0.0,
    seeded=(),
    trials=TRIALS,
) -> list[tuple[int, ...]]:
    """What `trials` equal requests emit in one verification of the same drafts."""
    torch.manual_seed(SEED)
    emitted = []
    bs = min(trials, 20_000)
    info = SimpleNamespace(
        acc_additive_penalties=None,
        acc_scaling_penalties=None,
        logit_bias=None,
        has_watermark_candidates=False,
        has_custom_logit_processor=False,
        is_all_greedy=False,
        sampling_seed=None,
        seeded=seeded,
        all_seeded=False,
        temperatures=torch.full((bs, 1), temperature),
        top_ks=torch.full((bs,), top_k, dtype=torch.int32),
        top_ps=torch.full((bs,), top_p),
        min_ps=torch.full((bs,), min_p),
        need_top_k_sampling=top_k != 1 << 30,
        need_top_p_sampling=top_p != 1,
        need_min_p_sampling=min_p > 0,
    )
    needed = info.need_top_k_sampling, info.need_top_p_sampling
    batch = SimpleNamespace(
        device="cpu",
        forward_mode=SimpleNamespace(is_idle=lambda: False),
        seq_lens=torch.ones(bs, dtype=torch.int64),
        sampling_info=info,
        reqs=[request()] * bs,
        return_logprob=False,
    )
    verify_input = SimpleNamespace(
        draft_token=torch.tensor([0, *drafts]).repeat(bs),
        draft_token_num=N,
        max_tree_depth=N,
        spec_steps=N - 1,
        retrieve_index=torch.arange(bs * N).view(bs, N),
        retrieve_next_token=torch.tensor([*range(1, N), -1]).repeat(bs, 1),
        retrieve_next_sibling=torch.full((bs, N), -1),
        tree_topk=1,
        positions=torch.arange(N).repeat(bs),
        draft_probs=None,
    )
    for _ in range(trials // bs):
        output = SimpleNamespace(next_token_logits=LOGITS.repeat(bs, 1))
        predict, accept_lens, _ = eagle_worker_common.eagle_sample(verify_input, batch, output)
        for row, count in zip(predict.view(bs, N).tolist(), accept_lens.tolist(), strict=True):
            emitted.append(tuple(row[:count]))
    assert (info.need_top_k_sampling, info.need_top_p_sampling) == needed
    return emitted


def expected(position: int, *, temperature=1.0, top_k=1 << 30, top_p=1.0, min_p=0.0):
    """Probabilities by token, float64, without a tensor operation."""
    probs = (LOGITS[position].double() / temperature).softmax(0).tolist()
    order = sorted(range(VOCAB), key=lambda token: -probs[token])
    before, kept = 0.0, {}
    for rank, token in enumerate(order):
        if rank < top_k and before <= top_p and probs[token] >= min_p * probs[order[0]]:
            kept[token] = probs[token]
        before += probs[token]
    return {token: value / sum(kept.values()) for token, value in kept.items()}


def p_value(tokens: list[int], probs: dict[int, float]) -> float:
    counts = torch.tensor(tokens).bincount(minlength=VOCAB).tolist()
    assert all(token in probs for token, count in enumerate(counts) if count)
    if len(probs) == 1:
        return 1.0
    return chisquare(
        [counts[token] for token in probs], [p * len(tokens) for p in probs.values()]
    ).pvalue


@pytest.mark.heavy
@pytest.mark.heavy
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"min_p": 0.2},
        {"top_k": 4, "top_p": 0.6},
        {"top_k": 5, "top_p": 0.8, "min_p": 0.3, "temperature": 1.4},
        {"top_p": 0.5, "min_p": 0.05, "temperature": 0.7},
    ],
)
def test_tokens_follow_the_filtered_target(verifier, settings):
    drafts = [int(LOGITS[position].argmax()) for position in range(N - 1)]
    emitted = sample(drafts, **settings)
    for position in range(N):
        reached = [tokens[position] for tokens in emitted if len(tokens) > position]
        assert len(reached) > 1000
        pvalue = p_value(reached, expected(position, **settings))
        print(settings, "position", position, "n", len(reached), "p", pvalue)
        assert pvalue > 0.001


@pytest.mark.heavy
def test_a_draft_that_the_filters_exclude_is_never_accepted(verifier):
    worst = [int(LOGITS[position].argmin()) for position in range(N - 1)]
    emitted = sample(worst, min_p=0.2)
    assert {len(tokens) for tokens in emitted} == {1}
    assert p_value([tokens[0] for tokens in emitted], expected(0, min_p=0.2)) > 0.001


@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "top_p": 0.8}, {"min_p": 0.2}])
def test_seeded_requests_among_others(verifier, monkeypatch, settings):
    """Every second request has the tokens that its seed decides, as far as they were drafted."""
    monkeypatch.setattr(sampler, "murmur_hash32", seeded.murmur_hash32)
    drawn = sampler.multinomial_with_seed._torchdynamo_orig_callable
    monkeypatch.setattr(sampler, "multinomial_with_seed", drawn)
    count = 20_000
    requests = torch.arange(0, count, 2)
    kind = Seeded(requests, requests * 31, filtered=bool(settings), min_p="min_p" in settings)
    drafts = [int(LOGITS[position].argmax()) for position in range(N - 1)]
    emitted = sample(drafts, **settings, seeded=(kind,), trials=count)
    info = SimpleNamespace(
        top_ks=torch.full((count,), settings.get("top_k", 1 << 30)),
        top_ps=torch.full((count,), settings.get("top_p", 1.0)),
        min_ps=torch.full((count,), settings.get("min_p", 0.0)),
    )
    probs, positions = LOGITS.softmax(1).expand(count, N, VOCAB), torch.arange(N).expand(count, N)
    lengths = []
    for tokens, wanted in zip(
        emitted[::2], draw(kind, probs, positions, info).tolist(), strict=True
    ):
        right = [a == b for a, b in zip(wanted, [*drafts, None], strict=True)].index(False)
        assert tokens == tuple(wanted[: right + 1])
        lengths.append(len(tokens))
    assert set(lengths) == {1, 2, 3}
    others = [tokens[0] for tokens in emitted[1::2]]
    assert p_value(others, expected(0, **settings)) > 0.001
