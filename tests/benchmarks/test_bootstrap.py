"""Do 95 % intervals hold the true figure 95 % of the time?

Alone: pytest tests/benchmarks/test_bootstrap.py
"""

import numpy as np
import pytest

from fastmtp_benchmarks.bootstrap import bootstrap

SEED = 20250918


def ratio(numerator, denominator):
    return numerator / denominator


def test_coverage_of_a_ratio_of_sums():
    """400 experiments of 40 conversations; a 95 % interval that holds in 91 to 98 % is honest.

    Percentile intervals of small samples are a little too narrow; below 0.91 the probability of
    400 draws at a true coverage of 0.95 is under 0.001.
    """
    generator = np.random.default_rng(SEED)
    held = 0
    for experiment in range(400):
        verified = generator.integers(20, 200, 40)
        share = np.clip(generator.normal(0.5, 0.15, 40), 0, 1)
        accepted = generator.binomial(verified, share)
        low, high = bootstrap((accepted, verified), ratio, resamples=500, seed=experiment)
        held += low <= 0.5 <= high
    assert 0.91 <= held / 400 <= 0.98


def test_conversations_are_drawn_whole_and_in_pairs():
    """Two runs that slow down on the same conversations have a sharp speedup all the same."""
    generator = np.random.default_rng(SEED)
    seconds = generator.lognormal(0, 1, 40)
    tokens = np.full(40, 100.0)

    def speedup(n, s, m, t):
        return (m / t) / (n / s)

    low, high = bootstrap((tokens, seconds, tokens, seconds / 2), speedup)
    assert low == pytest.approx(2) == high


def test_the_same_every_time():
    columns = (range(1, 11), range(11, 21))
    assert bootstrap(columns, ratio) == bootstrap(columns, ratio)
    assert bootstrap(columns, ratio, seed=1) != bootstrap(columns, ratio)


def test_too_little_to_say():
    assert bootstrap(([1, 2, 3, 4], [1, 1, 1, 1]), ratio) is None
    assert bootstrap(([], []), ratio) is None
    assert bootstrap(([0] * 9, [0] * 9), ratio) is None
