"""Ratios of two lists of times, and the ranks that their intervals stand on."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_exp.analysis.ratios import _rank_below, ratio_of


def mann_whitney_counts(n, m):
    """In how many of the arrangements of n and m runs U takes each value 0 ... n m: the coefficients of the Gaussian
    binomial (n + m choose n)."""
    counts = [1] + [0] * (n * m)
    for i in range(1, n + 1):
        for value in range(n * m, m + i - 1, -1):
            counts[value] -= counts[value - m - i]
        for value in range(i, n * m + 1):
            counts[value] += counts[value - i]
    return counts


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (3, 3), (4, 2), (5, 5)])
def test_the_rank_statistic_is_counted_exactly(n, m):
    counts = [0] * (n * m + 1)
    for chosen in itertools.combinations(range(n + m), n):
        rest = [rank for rank in range(n + m) if rank not in chosen]
        counts[sum(x > y for x in chosen for y in rest)] += 1
    assert mann_whitney_counts(n, m) == counts


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [*itertools.product(range(1, 9), repeat=2), (8, 30), (30, 5), (30, 30)])
def test_the_rank_is_that_of_the_counts(n, m):
    below = list(itertools.accumulate(mann_whitney_counts(n, m)))
    for tail in (0.025, 0.05, 0.005):
        assert _rank_below(n, m, tail) == sum(count <= tail * math.comb(n + m, n) for count in below)


@pytest.mark.slow
def test_how_many_runs_an_interval_needs():
    assert _rank_below(3, 3, 0.025) == 0
    assert _rank_below(4, 4, 0.025) == 1
    assert _rank_below(5, 5, 0.025) == 3  # table A.6 of Hollander, Wolfe and Chicken: P(U <= 2) = 4/252
    assert _rank_below(40, 40, 0.025) == pytest.approx(_rank_below(30, 30, 0.025) * (40 / 30) ** 2, rel=0.1)


@settings(max_examples=50, deadline=None)
@given(a=st.lists(st.floats(0.01, 1e4), min_size=4, max_size=8), factor=st.floats(0.1, 10), data=st.data())
def test_ratios_scale_and_mirror(a, factor, data):
    b = data.draw(st.lists(st.floats(0.01, 1e4), min_size=4, max_size=8))
    ratio, lo, hi = ratio_of(a, b)
    assert lo <= ratio * (1 + 1e-9)
    assert ratio <= hi * (1 + 1e-9)
    assert ratio_of(a, [factor * value for value in b]) == pytest.approx((factor * ratio, factor * lo, factor * hi))
    assert ratio_of(b, a) == pytest.approx((1 / ratio, 1 / hi, 1 / lo))
