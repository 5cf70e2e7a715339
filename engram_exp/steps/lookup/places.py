"""A hash table of numbers for compiled loops: int64 [size, 2], in each place a number plus one, or 0 where it is free,
and what is kept for that number."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

HASH = np.uint64(0x9E3779B97F4A7C15)
ONE = np.uint64(1)


def places_for(numbers: int) -> np.ndarray:
    """An empty table that is never more than half full of so many numbers; its size is a power of two."""
    return np.zeros((1 << (2 * numbers - 1).bit_length(), 2), dtype=np.int64)


@njit(cache=True, error_model="numpy")
def place_of(number: Any, places: Any) -> Any:
    """Where a number stands in a table, or should."""
    mask = np.uint64(len(places) - 1)
    at = _home(number, mask)
    while places[at, 0] != 0 and places[at, 0] != number + 1:
        at = (at + ONE) & mask
    return at


@njit(cache=True, error_model="numpy")
def forget(number: Any, places: Any) -> None:
    """Take a number out of a table that it stands in; those behind it that would not be found any more move up."""
    mask = np.uint64(len(places) - 1)
    gap = place_of(number, places)
    at = (gap + ONE) & mask
    while places[at, 0] != 0:
        if (at - _home(places[at, 0] - 1, mask)) & mask >= (at - gap) & mask:
            places[gap, 0], places[gap, 1] = places[at, 0], places[at, 1]
            gap = at
        at = (at + ONE) & mask
    places[gap, 0] = 0


@njit(cache=True, error_model="numpy")
def _home(number: Any, mask: Any) -> Any:
    """Where it stands if nothing else does."""
    return (np.uint64(number) * HASH >> np.uint64(32)) & mask
