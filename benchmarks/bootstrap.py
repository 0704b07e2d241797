"""Bootstrap confidence intervals over conversations.

Turns of one conversation depend on each other, so whole conversations are drawn. Every figure here
is a function of sums over conversations, which makes a resample one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_SEED = 20250918
# Below that the resamples say little more than which conversations there are.
_FEWEST = 5

Sums = NDArray[np.float64]
Interval = tuple[float, float]


def bootstrap(
    columns: Sequence[Sequence[float]],
    figure: Callable[..., Sums],
    *,
    level: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = _SEED,
) -> Interval | None:
    """Return the percentile interval of `figure(*sums)`.

    Args:
        columns: One sequence per argument of `figure`, one value per conversation.
        figure: Takes the columns' sums, each float64 [resamples], and returns as many values.
        level: Coverage.
        resamples: Number of draws.
        seed: Of the draws, so that a report is the same each time it is made.

    Returns:
        (low, high), or None for fewer than five conversations.
    """
    values = np.asarray(columns, dtype=np.float64)
    count = values.shape[1]
    if count < _FEWEST:
        return None
    generator = np.random.default_rng(seed)
    # Row r: how often each conversation was drawn into resample r.
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=resamples)
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = figure(*(drawn @ values.T).T)
    figures = figures[np.isfinite(figures)]
    if not len(figures):
        return None
    low, high = np.quantile(figures, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
