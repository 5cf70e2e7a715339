"""Rows in host memory in front of a file: those that other tokens of the same source ask for most often."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numba import njit

from engram_exp.machine.host_memory import HostMemory
from engram_exp.steps.lookup.places import place_of, places_for

FINDING_BYTES = 64  # of a row, at most: four places of a hash table


class HotRows:
    """Some rows of a table, chosen beforehand, and what finds them.

    Args:
        row_ids: of these rows, distinct, int64 [K].
        row_bytes: of a row.

    rows: uint8 [K, bytes of a row], for whoever makes this to fill.
    asked, found: rows that all of this process were asked for, and that were here.
    """

    asked: ClassVar[int] = 0
    found: ClassVar[int] = 0

    def __init__(self, row_ids: np.ndarray, row_bytes: int) -> None:
        self.row_ids = row_ids
        self.memory = HostMemory(len(row_ids) * row_bytes, huge_pages=True)
        self.rows = self.memory.bytes.numpy()[: len(row_ids) * row_bytes].reshape(-1, row_bytes)
        self.places = places_for(max(1, len(row_ids)))
        _enter(row_ids, self.places)

    def take(self, row_ids: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy the rows that are here to their places in `out` uint8 [N, bytes of a row]; the numbers of the others,
        int64, among N."""
        missing = np.empty(len(row_ids), dtype=np.int64)
        count = _take(row_ids, self.places, self.rows, out, missing)
        HotRows.asked += len(row_ids)
        HotRows.found += len(row_ids) - count
        return missing[:count]

    def put(self, row_ids: np.ndarray, missing: np.ndarray, read: np.ndarray, out: np.ndarray) -> None:
        """Copy rows that were read for the numbers of others to their places in `out`; none of them stays."""
        out[missing] = read


def hottest(row_ids: np.ndarray, most: int) -> np.ndarray:
    """The distinct row ids that are asked for most often, at most so many, in ascending order; of those that are asked
    for as often, the lowest."""
    distinct, counts = np.unique(row_ids.reshape(-1), return_counts=True)
    return np.sort(distinct[np.argsort(-counts, kind="stable")[:most]]).astype(np.int64)


@njit(cache=True, error_model="numpy")
def _enter(row_ids: Any, places: Any) -> None:
    for number in range(len(row_ids)):
        at = place_of(row_ids[number], places)
        places[at, 0], places[at, 1] = row_ids[number] + 1, number


@njit(cache=True, error_model="numpy")
def _take(row_ids: Any, places: Any, rows: Any, out: Any, missing: Any) -> Any:
    count = 0
    for index in range(len(row_ids)):
        at = place_of(np.int64(row_ids[index]), places)
        if places[at, 0]:
            out[index] = rows[places[at, 1]]
        else:
            missing[count] = index
            count += 1
    return count
