"""How far apart uses of a row are in a few batches: nothing is compiled, so that a run can say it in passing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SAMPLED_USES = 2**19  # at most, so that the time is bounded
CACHE_BYTES = 2**24  # small enough for so many uses of rows of some hundred bytes to fill it


class ReuseSample(NamedTuple):
    """What the first uses of a workload tell.

    hit_rate: of an exact least-recently-used cache of `CACHE_BYTES` of rows, warm: share of the second half of the uses
        that hit, behind the first.
    distance_rows: median, over the uses that repeat another, of how many other rows were used in between; None: no use
        does.
    """

    hit_rate: float
    distance_rows: float | None


def sample_reuse(row_ids: np.ndarray, row_bytes: int) -> ReuseSample:
    """Count what uses of rows tell.

    Args:
        row_ids: [U], whole numbers, in the order of their uses, at least one.
        row_bytes: of a row.
    """
    places, distances = repeat_distances(row_ids)
    late = places >= len(row_ids) // 2
    hits = np.count_nonzero(distances[late] < CACHE_BYTES // row_bytes)
    median = float(np.median(distances)) if len(distances) else None
    return ReuseSample(hits / (len(row_ids) - len(row_ids) // 2), median)


def repeat_distances(row_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places [R] of uses that repeat another, and how many other rows were used in between [R]: by the same sum as
    in `engram_exp.reuse.distances`."""
    order = np.argsort(row_ids, kind="stable")
    again = row_ids[order[1:]] == row_ids[order[:-1]]
    before = np.full(len(row_ids), -1)
    before[order[1:][again]] = order[:-1][again]
    places = np.flatnonzero(before >= 0)
    previous = before[places]
    return places, places - previous - 1 - _greater_before(previous)


def _greater_before(values: np.ndarray) -> np.ndarray:
    """How many greater ones stand before each of some numbers, no two the same.

    Ranks 0 to 2^k - 1, those behind the last for want of others, are halved by their highest bit, the halves by the
    next, and so on, in the order in which they stand: in each half, a lower one is passed by the upper ones before it.
    """
    count = len(values)
    ranks = np.arange(1 << max(count - 1, 0).bit_length())
    ranks[np.argsort(values)] = np.arange(count)
    passed = np.zeros(len(ranks), dtype=np.int64)
    blocks = ranks[None]
    while blocks.shape[1] > 1:
        half = blocks.shape[1] // 2
        is_upper = blocks % (2 * half) >= half
        lower, upper = blocks[~is_upper], blocks[is_upper]
        passed[lower] += np.cumsum(is_upper, axis=1)[~is_upper]
        blocks = np.stack([lower.reshape(-1, half), upper.reshape(-1, half)], axis=1).reshape(-1, half)
    return passed[ranks[:count]]
