"""Blocks of a file that hold rows: which must be read, and rows out of those that were."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from engram_exp.steps.lookup.places import place_of


def most_blocks(row_bytes: int, block_bytes: int) -> int:
    """That a row may lie in."""
    return (row_bytes + block_bytes - 2) // block_bytes + 1


@njit(cache=True, error_model="numpy")
def plan_blocks(
    row_ids: Any, first: Any, extents: Any, block_bytes: Any, of_row: Any, known: Any, requests: Any
) -> Any:
    """Requests for the blocks of as many rows as there is room for, each block once, neighbours together: the number of
    the first row that is left, and how many requests there are."""
    count, used = 0, 0
    for index in range(first, len(row_ids)):
        if used + of_row > len(requests):
            return index, count
        row = np.int64(row_ids[index])
        for part in range(len(extents)):
            begin = extents[part, 0] + row * extents[part, 1]
            for block in range(begin // block_bytes, (begin + extents[part, 1] - 1) // block_bytes + 1):
                at = place_of(block, known)
                if known[at, 0]:
                    continue
                known[at, 0], known[at, 1] = block + 1, used
                offset = block * block_bytes
                if count and requests[count - 1, 0] + requests[count - 1, 1] == offset:
                    requests[count - 1, 1] += block_bytes
                else:
                    requests[count, 0], requests[count, 1], requests[count, 2] = offset, block_bytes, used * block_bytes
                    count += 1
                used += 1
    return len(row_ids), count


@njit(cache=True, error_model="numpy")
def copy_rows(
    row_ids: Any, first: Any, end: Any, extents: Any, block_bytes: Any, known: Any, blocks: Any, out: Any
) -> None:
    """Rows out of the blocks that hold them."""
    for index in range(first, end):
        row = np.int64(row_ids[index])
        for part in range(len(extents)):
            position, left, to = extents[part, 0] + row * extents[part, 1], extents[part, 1], extents[part, 2]
            while left:
                block, within = position // block_bytes, position % block_bytes
                size = min(left, block_bytes - within)
                source = known[place_of(block, known), 1] * block_bytes + within
                out[index, to : to + size] = blocks[source : source + size]
                position, left, to = position + size, left - size, to + size
