"""Which of the row ids of a call are distinct, found on the CPU: compiled, column by column, without sorting."""

from __future__ import annotations

import numpy as np
from numba import prange

from engram_exp.steps.loops import Loop, Threads, threads_for
from engram_exp.vocabulary import AUTO

TOGETHER_FROM_ROWS = 16384  # row ids from which on auto takes all threads: as the hash, whose loop is as short
BLOCK_TOKENS = 64
FREE = -1  # a place of a hash table


class DistinctFinder:
    """Numbers the distinct row ids of each hash column, in which no other column's rows are, in the order in which they
    are first asked for; those of one column behind those of another.

    A column's row ids go into a hash table of its own, which a core's cache holds, so that threads share nothing.

    Args:
        max_tokens: T, at most.
        columns: H.
        row_id_dtype: of the row ids.
        threads: of the CPU; auto: the calling one for the row ids of a small step, else all of the run.
    """

    def __init__(self, max_tokens: int, columns: int, row_id_dtype: np.dtype, threads: Threads = AUTO) -> None:
        self.threads, places = threads, _places(max_tokens)
        self.keys = np.full((columns, places), FREE, dtype=row_id_dtype)
        self.numbers = np.empty((columns, places), dtype=np.int32)
        self.of_column = np.empty((columns, max_tokens), dtype=np.int32)  # which of them each row id is
        self.found = np.empty((columns, max_tokens), dtype=row_id_dtype)
        self.counts = np.empty(columns, dtype=np.int64)
        self.distinct = np.empty(columns * max_tokens, dtype=row_id_dtype)

    @staticmethod
    def bytes(tokens: int, columns: int, row_id_bytes: int) -> int:
        """Bytes that it keeps."""
        return columns * (_places(tokens) * (row_id_bytes + 4) + tokens * (4 + 2 * row_id_bytes) + 8)

    def __call__(self, row_ids: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """The distinct ones of row ids [T, H] of at least 0, a row of two columns twice; overwritten by the next call.

        Args:
            row_ids: of a call.
            numbers: [T, H], overwritten: which of the distinct ones each row id is.
        """
        threads = threads_for(self.threads, row_ids.size, TOGETHER_FROM_ROWS)
        keys = self.keys[:, : _places(len(row_ids))]
        _find(threads, row_ids, keys, self.numbers, self.found, self.of_column, self.counts)
        firsts = np.cumsum(self.counts) - self.counts
        _join(threads, self.found, self.of_column, self.counts, firsts, self.distinct, numbers)
        return self.distinct[: int(self.counts.sum())]


def _places(tokens: int) -> int:
    """Of a hash table that is at most half full."""
    return 1 << tokens.bit_length() + 1


@Loop
def _find(row_ids, keys, numbers, found, of_column, counts):  # type: ignore[no-untyped-def]
    tokens, columns = row_ids.shape
    last_place = keys.shape[1] - 1
    for column in prange(columns):
        for place in range(last_place + 1):
            keys[column, place] = -1  # FREE
        count = 0
        for token in range(tokens):
            row_id = row_ids[token, column]
            place = ((np.int64(row_id) * 2654435761) >> 16) & last_place
            while keys[column, place] != row_id and keys[column, place] != -1:
                place = (place + 1) & last_place
            if keys[column, place] != row_id:
                keys[column, place] = row_id
                numbers[column, place] = count
                found[column, count] = row_id
                count += 1
            of_column[column, token] = numbers[column, place]
        counts[column] = count


@Loop
def _join(found, of_column, counts, firsts, distinct, numbers):  # type: ignore[no-untyped-def]
    tokens, columns = numbers.shape
    for block in prange((tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS):
        first = block * BLOCK_TOKENS
        for token in range(first, min(tokens, first + BLOCK_TOKENS)):
            for column in range(columns):
                numbers[token, column] = firsts[column] + of_column[column, token]
                if token < counts[column]:
                    distinct[firsts[column] + token] = found[column, token]
