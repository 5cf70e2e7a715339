"""Intervals that are exact, and times that are called steady."""

import math
import subprocess
import sys
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engram_exp.measure.statistics import is_steady, paired, quantile_interval, summarise


@pytest.mark.parametrize(("quantile", "enough"), [(0.5, 6), (0.95, 72), (0.99, 368)])
def test_an_interval_needs_so_many_samples(quantile, enough):
    assert quantile_interval(range(enough - 1), quantile) is None
    assert quantile_interval(range(enough), quantile) is not None


def test_the_median_interval_of_published_tables():
    """Conover, table A3: ranks of the 95 % interval of the median."""
    for n, ranks in {6: (1, 6), 10: (2, 9), 20: (6, 15), 50: (18, 33), 100: (40, 61)}.items():
        assert quantile_interval(range(1, n + 1), 0.5) == ranks


def summed_up(n, quantile, tail):
    """Ranks from binomial probabilities, each by the formula and all of them added up."""
    log_p, log_q = math.log(quantile), math.log1p(-quantile)
    pmf = (
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * log_p + (n - k) * log_q)
        for k in range(n + 1)
    )
    at_most = list(accumulate(pmf))
    lower = sum(p <= tail for p in at_most)
    upper = next((k + 1 for k, p in enumerate(at_most) if p >= 1 - tail), n + 1)
    return None if lower < 1 or upper > n else (lower, upper)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2000), st.sampled_from([0.1, 0.5, 0.95, 0.99]), st.sampled_from([0.9, 0.95, 0.99]))
@example(0, 0.5, 0.95)
@example(6, 0.5, 0.95)
@example(72, 0.95, 0.95)
@example(368, 0.99, 0.95)
def test_the_ranks_are_those_of_the_formula(n, quantile, confidence):
    assert quantile_interval(range(1, n + 1), quantile, confidence) == summed_up(n, quantile, (1 - confidence) / 2)


def test_the_interval_covers_the_median_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        low, high = quantile_interval(random.lognormal(size=25), 0.5)
        covered += low <= 1 <= high
    assert 0.95 <= covered / 2000 <= 0.98  # exact coverage for n = 25: 0.957


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=500))
def test_summaries_hold_together(samples):
    columns = summarise(samples)
    assert columns["wall_ms_min"] <= columns["wall_ms_median"] <= columns["wall_ms_max"]
    assert math.isclose(columns["wall_ms_mean"], sum(samples) / len(samples), rel_tol=1e-9)
    assert (columns["wall_ms_lo"] is None) == (len(samples) < 6)
    assert (columns["wall_ms_p95"] is None) == (len(samples) < 72)
    assert (columns["wall_ms_p99"] is None) == (len(samples) < 368)
    if columns["wall_ms_lo"] is not None:
        assert columns["wall_ms_lo"] <= columns["wall_ms_median"] <= columns["wall_ms_hi"]


def test_percentiles_are_those_they_are_called():
    columns = summarise(range(1001))
    assert (columns["wall_ms_p95"], columns["wall_ms_p99"]) == (950, 990)


FLAT = [10.0, 10.1, 9.9, 10.05, 9.95] * 4


@pytest.mark.parametrize(
    ("times", "steady"),
    [
        pytest.param(FLAT, True, id="flat"),
        pytest.param([*FLAT[:7], 900.0, *FLAT[8:]], True, id="one outlier"),
        pytest.param([1000.0, *FLAT[1:]], True, id="one slow first sample"),
        pytest.param([10.0] * 12, True, id="all the same"),
        pytest.param([10 - 0.3 * n for n in range(20)], False, id="falling"),
        pytest.param([10 + 0.3 * n for n in range(20)], False, id="rising"),
        pytest.param([20.0] * 8 + [10.0] * 8, False, id="a step"),
        pytest.param([10 - 0.03 * n for n in range(20)], True, id="a drift that does not matter"),
        pytest.param([10, 20] * 10, True, id="noise without a trend"),
        pytest.param([10.0, 5.0], None, id="two samples"),
        pytest.param([10.0] * 11, None, id="eleven samples"),
        pytest.param([], None, id="no sample"),
    ],
)
def test_times_are_steady_that_neither_fall_nor_rise(times, steady):
    assert is_steady(times) is steady


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-3, 1e6), max_size=40))
def test_what_is_steady_is_so_in_any_unit_and_backwards(times):
    assert is_steady(times) == is_steady([1024 * time for time in times]) == is_steady(times[::-1])


@pytest.mark.slow
def test_measuring_does_not_wait_for_scipy():
    code = "import sys, engram_exp.measure.loop; sys.exit(any(name.startswith('scipy') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_differences_are_taken_within_a_round():
    drift = np.linspace(0, 50, 20)
    median, low, high = paired((drift + 3).tolist(), [*drift, 999.0])
    assert median == pytest.approx(3)
    assert low == pytest.approx(3)
    assert high == pytest.approx(3)


def test_the_same_timed_twice_differs_by_nothing():
    """An A/A comparison in rounds that drift: the interval holds 0 in at least 95 of 100 runs."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        drift = np.cumsum(random.normal(0, 0.1, 30))
        _, low, high = paired(*(drift + random.lognormal(size=30) for _ in range(2)))
        held += low <= 0 <= high
    assert held >= 950


def test_few_rounds_carry_no_interval_of_a_difference():
    assert paired([2.0, 3.0], [1.0, 1.0]) == (1.5, None, None)
