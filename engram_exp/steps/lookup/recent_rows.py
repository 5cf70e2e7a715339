"""Rows in host memory in front of a file: those that were asked for last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numba import njit

from engram_exp.machine.host_memory import HostMemory
from engram_exp.steps.lookup.hot_rows import FINDING_BYTES, HotRows
from engram_exp.steps.lookup.places import forget, place_of, places_for

KEEPING_BYTES = FINDING_BYTES + 8 + 8 + 4  # of a row, at most: what finds it, its id, its neighbours, its request
NEWER, OLDER = 0, 1  # neighbours of a line in the order of their last uses
KEPT_BYTES = 2**24  # of rows that are handed out at a time
NOT_ASKED = -1


class RecentRows:
    """A least-recently-used cache of whole rows that takes one row id after the other: of those that a call asks for
    twice, the second hits, too, unless so many others lie between them that it is gone again.

    Args:
        rows: that it holds, at most.
        row_bytes: of a row.

    counts: row ids that hit so far, and all that were asked for, int64 [2].
    """

    def __init__(self, rows: int, row_bytes: int) -> None:
        self.row_ids = np.zeros(rows, dtype=np.int64)  # all is written once: pages come before samples
        self.memory = HostMemory(rows * row_bytes, huge_pages=True)
        self.memory.bytes.zero_()
        self.rows = self.memory.bytes.numpy()[: rows * row_bytes].reshape(-1, row_bytes)
        self.places = places_for(max(1, rows))
        self.links = np.full((rows + 1, 2), rows, dtype=np.int32)  # of lines; the last one closes the ring
        self.asked = np.empty(rows, dtype=np.int32)  # of a line, the number of the request that its row comes with
        self.used, self.counts = np.zeros(1, dtype=np.int64), torch.zeros(2, dtype=torch.int64)
        self.source = np.empty(0, dtype=np.int32)  # of each row id of a call, the number of its request
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self.places[:] = 0
        self.links[-1] = len(self.row_ids)
        self.asked[:] = NOT_ASKED
        self.used[0] = 0

    def take(self, row_ids: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy the rows that are here to their places in `out` uint8 [N, bytes of a row]; the numbers among N of those
        that must be read, int64. What is read is then `put`."""
        missing = np.empty(len(row_ids), dtype=np.int64)
        self.source = np.empty(len(row_ids), dtype=np.int32)
        kept = self.row_ids, self.places, self.links, self.asked, self.used, self.rows
        count, found = _take(row_ids, *kept, out, self.source, missing)
        self.counts += torch.tensor([found, len(row_ids)])
        HotRows.asked += len(row_ids)
        HotRows.found += found
        return missing[:count]

    def put(self, row_ids: np.ndarray, missing: np.ndarray, read: np.ndarray, out: np.ndarray) -> None:
        """Keep rows, and copy them to their places.

        Args:
            row_ids, out: of the call.
            missing: numbers of the rows that were read.
            read: these rows, uint8 [number of them, bytes of a row].
        """
        _put(row_ids, missing, self.places, self.asked, self.rows, read, self.source, out)

    def kept(self, most: int | None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What it keeps, or so many rows of it, drawn at random; some at a time: row ids [N], and copies of their rows,
        uint8 [N, bytes of a row]."""
        used, at_a_time = int(self.used[0]), max(1, KEPT_BYTES // self.rows.shape[1])
        lines = np.arange(used) if most is None else np.random.default_rng().permutation(used)[:most]
        for first in range(0, len(lines), at_a_time):
            some = lines[first : first + at_a_time]
            yield torch.from_numpy(self.row_ids[some]), torch.from_numpy(self.rows[some])


@njit(cache=True, error_model="numpy")
def _take(
    row_ids: Any, held: Any, places: Any, links: Any, asked: Any, used: Any, rows: Any, out: Any, source: Any,
    missing: Any,
) -> Any:  # fmt: skip
    """How many requests there are, and how many row ids hit. Lines are left as they were: what a request of this call
    will be written over may hit before."""
    end, count, found = len(held), 0, 0
    for index in range(len(row_ids)):
        row = np.int64(row_ids[index])
        at = place_of(row, places)
        if places[at, 0]:
            line = places[at, 1]
            found += 1
            source[index] = asked[line]
            if asked[line] == NOT_ASKED:
                out[index] = rows[line]
            _unlink(line, links)
        else:
            if used[0] < len(held):
                line = used[0]
                used[0] += 1
            else:
                line = np.int64(links[end, NEWER])  # of the ring's end: the one that was not used for longest
                _unlink(line, links)
                forget(held[line], places)
                at = place_of(row, places)
            places[at, 0], places[at, 1] = row + 1, line
            held[line], asked[line], source[index], missing[count] = row, count, count, index
            count += 1
        before = links[end, OLDER]
        links[line, OLDER], links[line, NEWER] = before, end
        links[before, NEWER], links[end, OLDER] = line, line
    return count, found


@njit(cache=True, error_model="numpy", inline="always")
def _unlink(line: Any, links: Any) -> None:
    newer, older = links[line, NEWER], links[line, OLDER]
    links[newer, OLDER], links[older, NEWER] = older, newer


@njit(cache=True, error_model="numpy")
def _put(
    row_ids: Any, missing: Any, places: Any, asked: Any, rows: Any, read: Any, source: Any, out: Any
) -> None:  # fmt: skip
    for number in range(len(missing)):
        at = place_of(np.int64(row_ids[missing[number]]), places)
        line = places[at, 1]
        if places[at, 0] and asked[line] == number:  # else it has gone again, or come once more
            rows[line] = read[number]
            asked[line] = NOT_ASKED
    for index in range(len(row_ids)):
        if source[index] != NOT_ASKED:
            out[index] = read[source[index]]
