"""Random rows that the CPU reads, by the size of a row and by the memory that they are spread over."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any

import torch
from numba import njit, prange

from engram_exp.measure.curve import best_from, rate_of_rows
from engram_exp.measure.rates import Limit, Load, Peaks, Work
from engram_exp.measure.rig import SHORT, Rig
from engram_exp.steps.lookup.gather import ROWS_AHEAD, prefetch_row
from engram_exp.vocabulary import HOST

SPREAD_BYTES = [2**power for power in (20, 23, 25, 28, 30, 31)]
ROW_BYTES = (64, 128, 256, 264, 512, 1024)
ROWS = 2**20  # of a gather ...
GATHERS = 16  # ... and at most so many of them before rows come again: more than a cache holds ...
GATHER_BYTES = 2**24  # ... or one for so many bytes: what is in a cache may come again
RATES = "host_rows_per_s"


def measure(rig: Rig) -> dict[str, dict[str, dict[str, float]]]:
    """`host_rows_per_s`: bytes that rows are spread over -> bytes of a row -> random rows that all CPU threads read,
    without writing them."""
    available = rig.memory.bytes.nbytes
    spreads = [*(size for size in SPREAD_BYTES if size < available), min(available, SPREAD_BYTES[-1])]
    return {RATES: {str(size): {str(row): _rows_per_s(rig, size, row) for row in ROW_BYTES} for size in spreads}}


def _rows_per_s(rig: Rig, spread_bytes: int, row_bytes: int) -> float:
    rows = spread_bytes // row_bytes
    table = rig.memory.bytes[: rows * row_bytes].view(rows, row_bytes).view(torch.int64).numpy()
    gathers = min(GATHERS, max(1, spread_bytes // GATHER_BYTES))
    row_ids = cycle(torch.randint(rows, (gathers, ROWS), dtype=torch.int32).numpy())
    return ROWS / rig.best_s(HOST, partial(_read_next, table, row_ids), SHORT)


def bounds(work: Work, load: Load, peaks: Peaks) -> Iterator[Limit]:
    """The bound of rows of this size in so much memory."""
    rows = work.get("host rows", 0)
    if rows and RATES in peaks:
        by_spread = {size: rate_of_rows(curve, load.row_bytes) for size, curve in peaks[RATES].items()}
        yield Limit(rows / best_from(by_spread, load.spread_bytes) * 1e3, "host rows")


def in_words(peaks: Peaks, dtype: str) -> Iterator[str]:
    """Nothing: a single rate would mislead."""
    return iter(())


def _read_next(table: Any, row_ids: Iterator[Any]) -> None:
    _read_rows(table, next(row_ids))


@njit(parallel=True, cache=True, error_model="numpy")
def _read_rows(table, row_ids):  # type: ignore[no-untyped-def]
    total = 0
    words = table.shape[1]
    for block in prange((len(row_ids) + 511) // 512):
        for index in range(block * 512, min(len(row_ids), block * 512 + 512)):
            if index + ROWS_AHEAD < len(row_ids):
                prefetch_row(table, row_ids[index + ROWS_AHEAD])
            row = table[row_ids[index]]
            for word in range(words):
                total += row[word]
    return total
