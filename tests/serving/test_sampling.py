"""Sampled answers follow the distribution that they have without speculation, token by token.

Two-sample chi-square of the tokens at each place, p > 0.001.
Run alone: pytest tests/serving/test_sampling.py (starts two tiny servers).
"""

import pytest
from distributions import PLACES, p_value, sampled


@pytest.mark.parametrize(
    "settings",
    [
        {"min_p": 0.6},
        {"top_k": 6, "top_p": 0.5},
        {"top_p": 0.9, "min_p": 0.3, "presence_penalty": 0.8},
    ],
)
def test_distribution_of_each_place(servers, settings):
    fast, base = (sampled(servers(kind), **settings) for kind in ("mimo-native", "mimo"))
    # SGLang's own penalties lag where its scheduling overlaps: only the first two places agree.
    for place in range(2 if "presence_penalty" in settings else PLACES):
        tokens = [[answer.ids[place] for answer in answers] for answers in (fast, base)]
        pvalue = p_value(*tokens)
        print(settings, "place", place, "tokens", len(set(tokens[1])), "p", pvalue)
        assert len(set(tokens[1])) > 1
        assert pvalue > 0.001
    assert sum(answer.meta["spec_num_correct_drafts"] for answer in fast) > 100


def test_min_p_bars_what_it_should(servers):
    """At the limit of 1, sampling is greedy."""
    assert len({a.ids for a in sampled(servers("mimo-native"), min_p=1.0)}) == 1
