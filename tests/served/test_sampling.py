"""Sampled answers follow the distribution that they have without speculation.

Two-sample chi-square of the tokens at each place and of the first pairs; the draws are seeded by
the servers, so a right build fails one of these tests in 4,000 runs.
Run alone: pytest tests/served/test_sampling.py (starts four tiny servers).
"""

import pytest
from client import acceptance_length
from distributions import PLACES, p_value, sampled, sampled_alone

_UNLIKELY = 1e-5
SETTINGS = (
    {},
    {"top_k": 6, "top_p": 0.9, "min_p": 0.15},
)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["mimo-native", "mimo-rejection", "mimo-block"])
def test_distribution_of_each_place(servers, kind, settings):
    fast = sampled(servers(kind), **settings)
    base = sampled_alone(servers("mimo"), tuple(settings.items()))
    for place in range(PLACES):
        tokens = [[answer.ids[place] for answer in answers] for answers in (fast, base)]
        assert len(set(tokens[1])) > 1
        assert p_value(*tokens) > _UNLIKELY, (place, tokens)
    pairs = [[answer.ids[1:3] for answer in answers] for answers in (fast, base)]
    assert p_value(*pairs) > _UNLIKELY
    # Or the draws would say nothing about verification.
    assert sum(answer.meta.get("spec_verify_ct", 0) for answer in fast) > len(fast)
    assert acceptance_length(fast) > 1.2


@pytest.mark.parametrize("kind", ["mimo-native", "mimo-rejection"])
def test_the_highest_min_p_leaves_one_token(servers, kind):
    assert len({answer.ids for answer in sampled(servers(kind), min_p=1.0)}) == 1
