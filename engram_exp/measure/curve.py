"""Measured curves, and what they say between and beyond their points. Keys are whole numbers, as JSON writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import TypeVar

Value = TypeVar("Value")
Curve = Mapping[str, float]


def points(curve: Mapping[str, Value]) -> list[tuple[int, Value]]:
    """The points of a curve in ascending order."""
    return sorted(((int(key), value) for key, value in curve.items()), key=lambda point: point[0])


def time_at(curve: Curve, size_bytes: float) -> float:
    """A measured time at a size. A transfer has a latency and a rate: straight lines between the measured sizes, the
    shortest time below them, in proportion above."""
    known = points(curve)
    (first, shortest), (last, longest) = known[0], known[-1]
    if size_bytes <= first:
        return shortest
    for (left, at_left), (right, at_right) in pairwise(known):
        if size_bytes <= right:
            return at_left + (at_right - at_left) * (size_bytes - left) / (right - left)
    return longest * size_bytes / last


def rate_of_rows(curve: Curve, row_bytes: int) -> float:
    """A measured rate of rows at a row size: a power law between the measured sizes, the rate of the smallest below
    them, and as many bytes a second as at the largest above."""
    known = points(curve)
    (first, highest), (last, lowest) = known[0], known[-1]
    if row_bytes <= first:
        return highest
    for (left, at_left), (right, at_right) in pairwise(known):
        if row_bytes <= right:
            return at_left * (at_right / at_left) ** (math.log(row_bytes / left) / math.log(right / left))
    return lowest * last / row_bytes


def measured_from(curve: Mapping[str, Value], size: float) -> list[Value]:
    """What was measured at the largest size that is not larger, and at all above; nothing below the smallest. Of rates
    that fall, one of them is no worse than that of any size from this one on."""
    known = points(curve)
    nearest = max((at for at, _ in known if at <= size), default=None)
    return [] if nearest is None else [value for at, value in known if at >= nearest]


def nearest_to(curve: Mapping[str, Value], size: float) -> Value:
    """What was measured at the size that is nearest by ratio."""
    return min(points(curve), key=lambda point: abs(math.log(point[0] / size)))[1]


def least_time_at(curve: Curve, number: float) -> float:
    """The time that so many things take at least, where more of them take longer, but none longer than those before it:
    straight lines from no time for none through the measured numbers, and the longest time above."""
    before, at_before = 0, 0.0
    for count, time in points(curve):
        if number <= count:
            return at_before + (time - at_before) * (number - before) / (count - before)
        before, at_before = count, time
    return at_before


def best_from(curve: Curve, working_set_bytes: float) -> float:
    """The best rate that memory of some size may have, where caches hold what is small: the best of all measured sizes
    from the largest on that is not larger; a size below all of them is taken for the smallest. So a size between two
    points is as fast as the smaller one, and no small size is slower than a large one."""
    known = points(curve)
    nearest = max((size for size, _ in known if size <= working_set_bytes), default=known[0][0])
    return max(rate for size, rate in known if size >= nearest)
