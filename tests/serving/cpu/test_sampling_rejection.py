"""Rejection sampling with drafts that SGLang draws from a draft list emits the target's tokens.

Each case drafts and verifies 200,000 independent chains from SEED; the distribution of every token,
given the ones before, is judged by chi-square, p > 0.001 (Bonferroni over the ones before). Block
verification decides about several tokens at once, so there whole answers are judged.
Alone: pytest tests/serving/cpu/test_sampling_rejection.py
"""

import inspect

import pytest
import torch
from scipy.stats import chisquare
from sglang.srt.speculative import spec_utils

from fastmtp_sglang.serving.cpu import sampling
from fastmtp_sglang.serving.verification.filters import Filters, target_distribution

pytestmark = pytest.mark.heavy

SEED = 20250918
TRIALS = 200_000
VOCAB = 10
K = 2
EVERYTHING = list(range(VOCAB))


@pytest.fixture(autouse=True)
def cpu_operators(monkeypatch):
    monkeypatch.setattr(spec_utils, "row_argmax", sampling.row_argmax)


def random_logits(seed: int, rows: int) -> torch.Tensor:
    return 1.5 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(SEED + seed))


def draft(logits: torch.Tensor, ids: list[int], temperature: float = 1.0):
    """Drafts [TRIALS, K] over the list `ids`, and the q [TRIALS, K, VOCAB] they were drawn from."""
    listed = torch.full_like(logits, -torch.inf)
    listed[:, ids] = logits[:, ids]
    drafts, proposals = [], []
    for step in listed:
        q, _, x = spec_utils.sample_draft_proposal(
            step.repeat(TRIALS, 1),
            torch.full((TRIALS, 1), temperature),
            torch.full((TRIALS,), 1 << 30, dtype=torch.int32),
        )
        drafts.append(x)
        proposals.append(q)
    return torch.cat(drafts, dim=1), torch.stack(proposals, dim=1)


def verify(drafts: torch.Tensor, q: torch.Tensor, target: torch.Tensor, as_block: bool = False):
    """Tokens [TRIALS, n] and how many of each row were emitted."""
    n = drafts.shape[1] + 1
    predicts = torch.zeros(TRIALS * n, dtype=torch.int32)
    accepted = torch.zeros(TRIALS, dtype=torch.int32)
    sampling.sample_chain_from_proposal(
        predicts=predicts,
        accept_index=torch.zeros(TRIALS, n, dtype=torch.int32),
        accept_token_num=accepted,
        candidates=torch.cat((torch.zeros(TRIALS, 1, dtype=torch.int64), drafts), dim=1),
        retrive_index=torch.arange(TRIALS * (n)).view(TRIALS, n),
        retrive_next_token=None,
        retrive_next_sibling=None,
        uniform_samples=torch.rand(TRIALS, n),
        uniform_samples_for_final_sampling=torch.rand(TRIALS),
        target_probs=target.expand(TRIALS, -1, -1),
        draft_probs=q,
        threshold_single=1.0,
        threshold_acc=1.0,
        deterministic=True,
        block_verification=as_block,
    )
    return predicts.view(TRIALS, n).long(), accepted.long() + 1


def p_value(tokens: torch.Tensor, probs: torch.Tensor) -> float:
    counts = tokens.bincount(minlength=VOCAB).double()
    possible = probs > 0
    assert counts[~possible].sum() == 0
    if possible.sum() == 1:
        return 1.0
    expected = probs[possible].double()
    return chisquare(counts[possible], expected / expected.sum() * len(tokens)).pvalue


def nucleus(probs: torch.Tensor) -> torch.Tensor:
    filters = Filters(None, torch.full((len(probs),), 0.6), None, one_after_another=False)
    return target_distribution(probs, filters, sampling.top_k_renorm, sampling.top_p_renorm)


TARGET = random_logits(0, K + 1).softmax(1)
# Every token the target is likely to say is missing.
UNLIKELY = TARGET[:K].sum(0).argsort()[:4].tolist()
CASES = {
    "the target itself": (TARGET, TARGET[:K].log(), EVERYTHING, 1.0),
    "soft q": (TARGET, random_logits(1, K), EVERYTHING, 1.0),
    "hard q": (TARGET, 40 * random_logits(1, K), EVERYTHING, 1.0),
    "hot q": (TARGET, random_logits(1, K), EVERYTHING, 3.0),
    "half of the vocabulary": (TARGET, random_logits(1, K), EVERYTHING[::2], 1.0),
    "a list that misses most of p": (TARGET, TARGET[:K].log(), UNLIKELY, 1.0),
    "one token": (TARGET, random_logits(2, K), [3], 1.0),
    "top-p of p": (nucleus(TARGET), random_logits(1, K), EVERYTHING, 1.0),
    "top-p of p, half": (nucleus(TARGET), random_logits(1, K), EVERYTHING[::2], 1.0),
    "p of drafts is 0": (
        TARGET.index_fill(1, torch.tensor(UNLIKELY), 0.0),
        random_logits(1, K),
        UNLIKELY,
        1.0,
    ),
    "greedy p": (torch.eye(VOCAB)[TARGET.argmax(1)], random_logits(1, K), EVERYTHING, 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_emitted_tokens_follow_the_target(name):
    target, logits, ids, temperature = CASES[name]
    target = target / target.sum(1, keepdim=True)
    torch.manual_seed(SEED)
    drafts, q = draft(logits, ids, temperature)
    assert set(drafts.flatten().tolist()) <= set(ids)
    tokens, emitted = verify(drafts, q, target)
    # Accepted as often as two distributions overlap (arXiv 2211.17192, corollary 3.6).
    overlap = torch.minimum(target[0], q[0, 0]).sum().item()
    assert (emitted > 1).double().mean().item() == pytest.approx(overlap, abs=0.006)
    for position in range(K + 1):
        reached = emitted > position
        if reached.sum() < 1000:
            assert position > 0
            continue
        if position == 0:
            pvalues = [p_value(tokens[:, 0], target[0])]
        else:
            # Whatever was accepted before, the next token's distribution is the target's.
            before = tokens[:, position - 1]
            pvalues = [
                p_value(tokens[reached & (before == token), position], target[position])
                for token in ids
                if (reached & (before == token)).sum() > 1000
            ]
        print(name, "position", position, "p", [round(p, 3) for p in pvalues])
        assert min(pvalues) * len(pvalues) > 0.001


@pytest.mark.parametrize("as_block", [False, True])
def test_an_equal_proposal_is_always_accepted(as_block):
    torch.manual_seed(SEED)
    drafts, q = draft(TARGET[:K].log(), EVERYTHING)
    _, emitted = verify(drafts, q, torch.cat((q[0], TARGET[K:])), as_block)
    assert (emitted == K + 1).all()


def walks(table: torch.Tensor, first: torch.Tensor, steps: int):
    """Tokens [TRIALS, steps] that follow `first` by the table of each token's successors."""
    tokens = [first]
    for _ in range(steps):
        tokens.append(torch.multinomial(table[tokens[-1]], 1).squeeze(1))
    return torch.stack(tokens[1:], dim=1)


@pytest.mark.parametrize("kind", ["soft", "hard", "half", "certain"])
def test_a_block_is_accepted_so_that_whole_answers_follow_the_target(kind):
    """Both depend on the token before; what verification does not decide, the target goes on with.

    Of four tokens and three drafts there are 256 answers. The block accepts at least as many drafts
    as one after the other does (arXiv 2403.10444, theorem 2).
    """
    size, steps = 4, 3
    generator = torch.Generator().manual_seed(SEED)
    said, proposed = (1.5 * torch.randn(2, size, size, generator=generator)).unbind(0)
    if kind == "hard":
        proposed = 3 * proposed
    if kind == "half":
        proposed[:, 2:] = -torch.inf
    p, q = said.softmax(1), proposed.softmax(1)
    if kind == "certain":
        p = torch.eye(size)[p.argmax(1)]
    torch.manual_seed(SEED)
    start = torch.zeros(TRIALS, dtype=torch.int64)
    drafts = walks(q, start, steps)
    before = torch.cat((start.unsqueeze(1), drafts), dim=1)
    tokens, emitted = verify(drafts, q[before[:, :-1]], p[before], as_block=True)
    _, one_by_one = verify(drafts, q[before[:, :-1]], p[before])

    for place in range(1, steps + 1):
        later = torch.multinomial(p[tokens[:, place - 1]], 1).squeeze(1)
        tokens[:, place] = torch.where(emitted > place, tokens[:, place], later)
    answers, shares = torch.zeros(TRIALS, dtype=torch.int64), p[0].double()
    for place in range(steps + 1):
        answers = size * answers + tokens[:, place]
        if place:
            shares = (shares.unsqueeze(1) * p.double().repeat(len(shares) // size, 1)).flatten()
    counts, possible = answers.bincount(minlength=len(shares)).double(), shares > 0
    assert counts[~possible].sum() == 0
    if kind == "certain":
        assert torch.equal(emitted, one_by_one)
        return
    # Chi-square wants some of each: the rarest answers count as one.
    rare = shares * TRIALS < 5
    expected = torch.cat((shares[~rare], shares[rare].sum().unsqueeze(0))) * TRIALS
    observed = torch.cat((counts[~rare], counts[rare].sum().unsqueeze(0)))
    kept = expected > 0
    assert chisquare(observed[kept], expected[kept] / expected.sum() * TRIALS).pvalue > 0.001
    more = (emitted - one_by_one).double()
    noise = 4 * more.std() / TRIALS**0.5
    # Half of the tokens leave little that one draft could make good for another.
    assert more.mean() > (-noise if kind == "half" else noise)


def test_thresholds_that_change_the_distribution_are_refused():
    names = inspect.signature(sampling.sample_chain_from_proposal).parameters
    with pytest.raises(ValueError, match="change the output distribution"):
        sampling.sample_chain_from_proposal(**dict.fromkeys(names, 1.0) | {"threshold_acc": 0.9})
