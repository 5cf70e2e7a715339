"""Measured curves between and beyond their points."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.measure.curve import best_from, least_time_at, measured_from, nearest_to, rate_of_rows, time_at


def test_curves_are_followed_between_their_points_and_beyond():
    times, rates = {"100": 1.0, "10000": 10.0}, {"64": 8.0, "256": 2.0}
    assert [time_at(times, x) for x in (1, 100, 5050, 10000, 20000)] == pytest.approx([1, 1, 5.5, 10, 20])
    assert [rate_of_rows(rates, x) for x in (1, 64, 128, 256, 512)] == pytest.approx([8, 8, 4, 2, 1])


def test_a_small_size_is_at_least_as_fast_as_a_large_one():
    noisy = {"10": 3.0, "100": 9.0, "1000": 2.0}
    assert [best_from(noisy, x) for x in (1, 10, 99, 100, 999, 1000, 1e9)] == [9, 9, 9, 9, 9, 2, 2]


def test_what_was_measured_from_a_size_on():
    curve = {"10": "a", "100": "b", "1000": "c"}
    assert ["".join(measured_from(curve, size)) for size in (9, 10, 99, 100, 5000)] == ["", "abc", "abc", "bc", "c"]
    assert [nearest_to(curve, size) for size in (1, 31, 32, 316, 317, 1e9)] == ["a", "a", "b", "b", "c", "c"]


def test_fewer_things_take_their_share_and_more_no_less_than_the_most():
    times = {"10": 5.0, "110": 25.0}
    assert [least_time_at(times, number) for number in (0, 5, 10, 60, 110, 10**6)] == [0, 2.5, 5, 15, 25, 25]


@given(
    st.dictionaries(st.integers(1, 10**9).map(str), st.floats(0.1, 1e3), min_size=1),
    st.floats(0, 2e9),
    st.floats(0, 2e9),
)
def test_the_best_rate_never_rises_with_the_size_and_is_one_that_was_measured(curve, a, b):
    small, large = sorted((a, b))
    assert best_from(curve, small) >= best_from(curve, large)
    assert best_from(curve, small) in curve.values()
    assert all(best_from(curve, int(size)) >= rate for size, rate in curve.items())
