"""Many short answers to one prompt, and whether two servers draw them from one distribution.

The prompt's next tokens are nearly equally likely (`LOOPS`). SGLang seeds each server's draws.
"""

from collections import Counter

import models
from client import Answer, generate_all
from scipy.stats import chi2_contingency

PROMPT = [models.LOOPS[0]]
PLACES = 4  # the first is sampled after the prefill, the others are verified
ANSWERS = 1500


def sampled(url: str, **settings) -> list[Answer]:
    cases = [(PROMPT, PLACES)] * ANSWERS
    return generate_all(url, cases, concurrency=32, ignore_eos=True, temperature=1.0, **settings)


def p_value(fast: list[int], base: list[int]) -> float:
    """Of the hypothesis that both lists are draws from one distribution; rare tokens together."""
    counts = Counter(fast), Counter(base)
    rare = {t for t in {*fast, *base} if counts[0][t] + counts[1][t] < 20}
    common = sorted({*fast, *base} - rare)
    table = [[c[t] for t in common] + [sum(c[t] for t in rare)] for c in counts]
    table = [list(row) for row in zip(*table, strict=True) if sum(row) > 0]
    return chi2_contingency(table).pvalue if len(table) > 1 else 1.0
