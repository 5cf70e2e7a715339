"""Medians and other quantiles, with intervals that assume nothing about the distribution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

CONFIDENCE = 0.95


def quantile_interval(
    samples: Sequence[float], quantile: float, confidence: float = CONFIDENCE
) -> tuple[float, float] | None:
    """Two-sided confidence interval of a quantile from order statistics, or None where there are too few samples.

    The number of samples below the quantile is binomial (n, quantile); each tail gets half of what `confidence` leaves
    (Conover, "Practical Nonparametric Statistics", section 3.2). The median needs 6 samples for 95 %, the 95th
    percentile 72, the 99th 368.
    """
    ordered = sorted(samples)
    n = len(ordered)
    tail = (1 - confidence) / 2
    at_most = list(accumulate(_binomial_pmf(n, quantile)))  # at_most[k]: P(no more than k samples lie below)
    lower = sum(p <= tail for p in at_most)  # 1-based rank; 0: not even the smallest sample is low enough
    upper = next((k + 1 for k, p in enumerate(at_most) if p >= 1 - tail), n + 1)
    if lower < 1 or upper > n:
        return None
    return ordered[lower - 1], ordered[upper - 1]


def _binomial_pmf(n: int, p: float) -> list[float]:
    log_p, log_q = math.log(p), math.log1p(-p)
    return [
        math.exp(
            math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q
        )
        for k in range(n + 1)
    ]  # fmt: skip


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
