"""Many short answers to one prompt, and whether two servers draw them from one distribution.

The tokens that may follow the prompt are of similar probability (`LOOPS`). SGLang seeds each
server's draws at random.
"""

from collections import Counter
from functools import cache

import tiny_models as models
from client import Answer, generate_batch
from scipy.stats import chi2_contingency

PLACES = 3  # the first is sampled after the prefill, the others are verified
_PROMPT = [models.LOOPS[0]]
_ANSWERS = 300


def sampled(url: str, **settings) -> list[Answer]:
    """Answers of more than PLACES tokens: drafts behind an answer's end are not counted."""
    settings = {"temperature": 1.0, **settings}
    return generate_batch(
        url, [_PROMPT] * _ANSWERS, max_new_tokens=PLACES + 5, ignore_eos=True, **settings
    )


@cache
def sampled_alone(url: str, settings: tuple) -> list[Answer]:
    """Those of a server without speculation, drawn once; `settings` are pairs."""
    return sampled(url, **dict(settings))


def p_value(fast: list, base: list) -> float:
    """Of the hypothesis that both lists are draws from one distribution; rare ones together."""
    counts = Counter(fast), Counter(base)
    rare = {t for t in {*fast, *base} if counts[0][t] + counts[1][t] < 20}
    common = sorted({*fast, *base} - rare)
    table = [[c[t] for t in common] + [sum(c[t] for t in rare)] for c in counts]
    table = [list(row) for row in zip(*table, strict=True) if sum(row) > 0]
    return chi2_contingency(table).pvalue if len(table) > 1 else 1.0
