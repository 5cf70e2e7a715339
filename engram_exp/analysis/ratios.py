"""Ratios and differences between two groups of runs, with intervals that assume nothing about the distribution."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95
EXACT_RUNS = 30  # of a group, at most; beyond, the distribution of the rank statistic is normal enough


class Ratio(NamedTuple):
    """How much longer B takes than A.

    ratio: the median of all quotients of a run of B and a run of A.
    lo, hi: its 95 % interval; None where there are too few runs for one.
    """

    ratio: float
    lo: float | None
    hi: float | None


class Difference(NamedTuple):
    """How much more B has than A.

    shift: the median of all differences between a run of B and a run of A.
    lo, hi: its 95 % interval; None where there are too few runs for one.
    """

    shift: float
    lo: float | None
    hi: float | None


def ratio_of(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Ratio:
    """The shift between the logarithms of two groups, by Hodges and Lehmann, with the interval that inverts the
    Mann-Whitney test (Hollander, Wolfe and Chicken, "Nonparametric Statistical Methods", sections 4.2 and 4.3).

    Args:
        a, b: one positive number for each run, the unit of replication. 4 on each side are enough for an interval of
            95 %, and so are 3 and 5, or 2 and 8.
        confidence: of the interval.
    """
    quotients = np.sort(np.divide.outer(np.asarray(b, dtype=float), np.asarray(a, dtype=float)).ravel())
    return Ratio(float(np.exp(np.median(np.log(quotients)))), *_interval(quotients, len(a), len(b), confidence))


def difference_of(a: Sequence[float], b: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """The shift between two groups of any numbers; otherwise as `ratio_of`."""
    differences = np.sort(np.subtract.outer(np.asarray(b, dtype=float), np.asarray(a, dtype=float)).ravel())
    return Difference(float(np.median(differences)), *_interval(differences, len(a), len(b), confidence))


def _interval(ordered: Any, n: int, m: int, confidence: float) -> tuple[float | None, float | None]:
    """Of the n m ordered quotients or differences, those at the ends of the interval."""
    rank = _rank_below(n, m, (1 - confidence) / 2)
    return (float(ordered[rank - 1]), float(ordered[len(ordered) - rank])) if rank else (None, None)


@cache
def _rank_below(n: int, m: int, tail: float) -> int:
    """How many of the n m ordered quotients may be cut off at each end: the largest k with P(U < k) <= tail."""
    if max(n, m) > EXACT_RUNS:
        deviation = math.sqrt(n * m * (n + m + 1) / 12)
        return max(0, math.floor(n * m / 2 + NormalDist().inv_cdf(tail) * deviation))
    if 1 / math.comb(n + m, n) > tail:  # P(U = 0)
        return 0
    return bisect_right(range(n * m), tail, key=lambda u: _at_most(u, n, m))


def _at_most(u: int, n: int, m: int) -> float:
    """P(U <= u) for groups of n and m runs that do not differ: the exact test's p-value of two groups with that U."""
    from scipy.stats import mannwhitneyu  # which takes longer to import than all the rest

    above = [min(m, max(0, u - m * i)) for i in range(n)]  # how many of the others each is above
    values = [count + 0.5 + i / (2 * n) for i, count in enumerate(above)]
    return float(mannwhitneyu(values, range(1, m + 1), alternative="less", method="exact").pvalue)
