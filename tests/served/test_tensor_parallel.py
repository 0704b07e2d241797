"""Two ranks: answers are those of two ranks without speculation, draft lists included.

Tensor parallelism sums in another order than one rank, so both sides have two. Two replicas
(--dp-size) share nothing.
Run alone: pytest -m slow tests/served/test_tensor_parallel.py (starts five servers of two ranks).
"""

import chains
import pytest
from client import acceptance_length, assert_equal, generate, generate_all

pytestmark = pytest.mark.slow

LANGUAGES = ("zh", "en", "code", "ru")


def test_equal(servers):
    """12 requests of different lengths; the languages' texts are known (`chains`)."""
    cases = [(chains.prompt(LANGUAGES[i % 4], 16 + i), 24 + i) for i in range(12)]
    base = generate_all(servers("chains-two-ranks"), cases, concurrency=6, ignore_eos=True)
    fast = generate_all(servers("chains-routed-two-ranks"), cases, concurrency=6, ignore_eos=True)
    assert_equal(fast, base)
    # Nearly all of the 4 tokens of a step, whichever list a row drafts from.
    assert acceptance_length(fast) > 3.5


@pytest.mark.parametrize("language", ["ko", "zh"])
def test_own_tokens_are_drafted_whichever_rank_has_their_rows(servers, language):
    """Of a list without the text; Korean rows are the first rank's, Chinese the other's.

    What is drafted right was in the prompt.
    """
    cycle = chains.CYCLES[language]
    prompt, tokens = [*cycle[24:60], *cycle[:24]], 36
    answer = generate(
        servers("chains-own-two-ranks"),
        prompt,
        max_new_tokens=tokens,
        ignore_eos=True,
        custom_params={"lang": "ko"},
    )
    assert list(answer.ids) == chains.continued(prompt, tokens)
    assert acceptance_length([answer]) > 3.5


@pytest.mark.parametrize("kind", ["ranks", "replicas"])
def test_each_measures_other_times(servers, kind):
    """With another K than the other one a rank would wait for ever; replicas choose alone."""
    url, tokens = servers(f"chains-adaptive-two-{kind}"), 96
    cases = [(chains.prompt(LANGUAGES[i % 4], 16 + i), tokens) for i in range(12)]
    seen = set()
    for concurrency in (1, 4, 4, 4):
        answers = generate_all(url, cases, concurrency=concurrency, ignore_eos=True)
        for (prompt, _), answer in zip(cases, answers, strict=True):
            assert list(answer.ids) == chains.continued(prompt, tokens)
            counts = answer.meta.get("spec_correct_drafts_histogram", [])
            seen |= {accepted for accepted, count in enumerate(counts) if count}
    # It begins without drafts, and nearly all of this head's are right.
    assert 0 in seen
    assert len(seen) > 1
