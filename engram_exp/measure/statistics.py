"""Medians and other quantiles, with intervals that assume nothing about the distribution.

SciPy is imported when the first interval is asked for, behind the last sample: nobody waits for it before the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

CONFIDENCE = 0.95
STEADY_CHANGE = 0.05  # of the median, from the first half of the samples to the second: no more than this is steady


def quantile_interval(
    samples: Sequence[float], quantile: float, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Two-sided confidence interval of a quantile from order statistics, or None where there are too few samples.

    The number of samples below the quantile is binomial (n, quantile); each tail gets half of what `confidence` leaves
    (Conover, "Practical Nonparametric Statistics", section 3.2). The median needs 6 samples for 95 %, the 95th
    percentile 72, the 99th 368.
    """
    from scipy.special import bdtr  # a sixth of the import time of scipy.stats, whose distributions call it

    ordered = sorted(samples)
    n = len(ordered)
    tail = (1 - confidence) / 2
    at_most = bdtr(np.arange(n + 1), n, quantile)  # at_most[k]: P(no more than k samples lie below)
    lower = int(np.sum(at_most <= tail))  # 1-based rank; 0: not even the smallest sample is low enough
    upper = int(np.argmax(at_most >= 1 - tail)) + 1
    if lower < 1 or upper > n:
        return None
    return ordered[lower - 1], ordered[upper - 1]


def is_steady(wall_ms: Sequence[float]) -> bool | None:
    """Whether times neither fell nor rose while they were taken; None where there are fewer than 12, too few to judge.

    Not steady are samples whose first and second half have medians more than `STEADY_CHANGE` apart, with 95 % intervals
    that do not overlap. A trend shows; an outlier, noise without a trend, and a drift too small to matter do not.

    Args:
        wall_ms: all samples of a case, in the order in which they were taken.
    """
    half = len(wall_ms) // 2
    earlier, later = wall_ms[:half], wall_ms[len(wall_ms) - half :]
    before, after = quantile_interval(earlier, 0.5), quantile_interval(later, 0.5)
    if before is None or after is None:
        return None
    overlap = before[0] <= after[1] and after[0] <= before[1]
    low, high = sorted((float(np.median(earlier)), float(np.median(later))))
    return overlap or high <= (1 + STEADY_CHANGE) * low


def summarise(wall_ms: Sequence[float]) -> dict[str, float | None]:
    """The `wall_ms_*` columns of one case: nothing trimmed, nothing that so few samples cannot carry."""
    interval = quantile_interval(wall_ms, 0.5)
    tails = {
        f"wall_ms_p{percent}": float(np.percentile(wall_ms, percent))
        if quantile_interval(wall_ms, percent / 100)
        else None
        for percent in (95, 99)
    }
    return {
        "wall_ms_median": float(np.median(wall_ms)),
        "wall_ms_lo": interval[0] if interval else None,
        "wall_ms_hi": interval[1] if interval else None,
        "wall_ms_min": min(wall_ms),
        "wall_ms_mean": float(np.mean(wall_ms)),
        "wall_ms_max": max(wall_ms),
        **tails,
    }


def paired(longer_ms: Sequence[float], shorter_ms: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The median of what one case took longer than another, and its 95 % interval where the samples carry one.

    Differences are taken round by round, before anything else: what drifts, drifts for both.

    Args:
        longer_ms, shorter_ms: samples of the two in the order of their rounds; what one has beyond the other is of
            rounds that only it saw.
    """
    differences = [longer - shorter for longer, shorter in zip(longer_ms, shorter_ms, strict=False)]
    return float(np.median(differences)), *(quantile_interval(differences, 0.5) or (None, None))
