"""How far apart uses of a row are: exact, for every use of a stream, in a few passes over memory.

A use hits a cache that keeps the last C distinct rows (least recently used) if fewer than C other rows were used since
that row was last. With p(i) the place of the use before i of the same row, and of places counted from 0, that number is

    i - p(i) - 1 - #{j < i : p(j) > p(i)},

since a use j between the two repeats another one between them exactly if p(j) > p(i). First uses have no p and are
never counted, so that a merge sort of the others, which counts how many greater ones each element passes, gives the
distances of all of them (Knuth, The Art of Computer Programming 3, exercise 5.1.1-6, counts inversions so).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import get_num_threads, njit, prange

from engram_exp.steps.lookup.gather import prefetch_row

FIRST_USE = -1
RUN = 16  # elements that are sorted by insertion
BLOCK = RUN * 4**5  # that are sorted within a core's cache
BLOCK_TOKENS = 2**10
AHEAD = 16  # uses whose slots are asked for before they are needed
SLOT_WORDS = 4
MULTIPLIER = 0x9E3779B1  # Knuth's multiplicative hashing, of 32 bits


class Uses(NamedTuple):
    """The uses of rows by a stream of T tokens with H columns each.

    before: int32 [H, T], the token that used the same row before this one; -1: none.
    counts: for each column, int32 [U, 2]: how often each of its U rows was used in the first half of the tokens, and in
        the second.
    """

    before: np.ndarray
    counts: list[np.ndarray]

    @property
    def rows(self) -> int:
        """Rows that were used at all."""
        return sum(map(len, self.counts))


def find_uses(row_ids: np.ndarray) -> Uses:
    """The uses of row ids [T, H], in the order of tokens and of columns within a token.

    Args:
        row_ids: whole numbers from 0 to below 2^31; a row belongs to one column alone, as n-gram tables have it.
            T * H < 2^31.
    """
    tokens, columns = row_ids.shape
    by_column = np.empty((columns, tokens), dtype=np.int32)
    _transpose(row_ids, by_column)
    before, counts = np.empty_like(by_column), np.empty((columns, tokens, 2), dtype=np.int32)
    bits = (2 * tokens).bit_length()
    # Allocated by NumPy, which asks for huge pages: most of the time goes to translating addresses.
    slots = np.empty((min(columns, get_num_threads()), 2**bits, SLOT_WORDS), dtype=np.int32)
    rows = _find(by_column, before, counts, slots, bits)
    return Uses(before, [of_column[:used] for of_column, used in zip(counts, rows, strict=True)])


@njit(parallel=True, cache=True)
def _transpose(row_ids, by_column):  # type: ignore[no-untyped-def]
    columns, tokens = by_column.shape
    for part in prange((tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS):
        for column in range(columns):
            for token in range(part * BLOCK_TOKENS, min(tokens, (part + 1) * BLOCK_TOKENS)):
                by_column[column, token] = row_ids[token, column]


@njit(parallel=True, cache=True)
def _find(row_ids, before, counts, slots, bits):  # type: ignore[no-untyped-def]
    """Fill in places, and counts as far as there are rows; returns how many rows each column has."""
    columns = len(row_ids)
    rows = np.zeros(columns, dtype=np.int64)
    for worker in prange(len(slots)):
        for column in range(worker, columns, len(slots)):
            rows[column] = _find_in(row_ids[column], before[column], counts[column], slots[worker], bits)
    return rows


@njit(cache=True)
def _find_in(row_ids, before, counts, slots, bits):  # type: ignore[no-untyped-def]
    """The same of one column. A slot holds a row, the token of its last use, and how often it was used early and late;
    an empty one -1."""
    tokens = len(row_ids)
    slots[:] = FIRST_USE
    for token in range(tokens):
        if token + AHEAD < tokens:
            prefetch_row(slots, _slot(row_ids[token + AHEAD], bits))
        row = row_ids[token]
        slot = _slot(row, bits)
        while slots[slot, 0] != row and slots[slot, 0] != FIRST_USE:
            slot = (slot + 1) & ((1 << bits) - 1)
        if slots[slot, 0] == FIRST_USE:
            slots[slot, 0] = row
            slots[slot, 2] = slots[slot, 3] = 0
        before[token] = slots[slot, 1]
        slots[slot, 1] = token
        slots[slot, 2 + (2 * token >= tokens)] += 1
    rows = 0
    for slot in range(len(slots)):
        if slots[slot, 0] != FIRST_USE:
            counts[rows, 0], counts[rows, 1] = slots[slot, 2], slots[slot, 3]
            rows += 1
    return rows


@njit(cache=True, inline="always")
def _slot(row, bits):  # type: ignore[no-untyped-def]
    return ((np.int64(row) * MULTIPLIER) & 0xFFFFFFFF) >> (32 - bits)


def count_hits(before: np.ndarray, capacities: np.ndarray) -> np.ndarray:
    """Uses that hit a least-recently-used cache.

    Args:
        before: as `Uses` has it, [H, T].
        capacities: rows that caches hold, int64 [S], ascending.

    Returns:
        int64 [2, H, S]: of the first half of the tokens and of the second, by column and capacity.
    """
    repeats = _repeats(before)
    hits = _by_capacity(_sort_and_count(repeats, np.empty_like(repeats)), capacities, len(before))
    return hits.sum(axis=0, dtype=np.int64).cumsum(axis=-1)


@njit(parallel=True, cache=True)
def _repeats(before):  # type: ignore[no-untyped-def]
    """Repeats in the order of their places i, as one number each: p(i), then i - p(i) - 1, then whether i is late."""
    columns, tokens = before.shape
    parts = (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    first = np.zeros(parts + 1, dtype=np.int64)
    for part in prange(parts):
        for column in range(columns):
            for token in range(part * BLOCK_TOKENS, min(tokens, (part + 1) * BLOCK_TOKENS)):
                first[part + 1] += before[column, token] != FIRST_USE
    for part in range(parts):
        first[part + 1] += first[part]
    packed = np.empty(first[parts], dtype=np.int64)
    for part in prange(parts):
        at = first[part]
        for token in range(part * BLOCK_TOKENS, min(tokens, (part + 1) * BLOCK_TOKENS)):
            is_late = np.int64(2 * token >= tokens)
            for column in range(columns):
                previous = np.int64(before[column, token]) * columns + column
                if previous >= 0:
                    packed[at] = (previous << 32) | ((token * columns + column - previous - 1) << 1) | is_late
                    at += 1
    return packed


@njit(parallel=True, cache=True)
def _sort_and_count(packed, other):  # type: ignore[no-untyped-def]
    """The same by p(i), their distances lowered by the greater ones before them: blocks first, then pairs of runs, of
    which each thread merges a stretch."""
    count = len(packed)
    for block in prange((count + BLOCK - 1) // BLOCK):
        low, high = block * BLOCK, min(count, block * BLOCK + BLOCK)
        source, target = packed, other
        for start in range(low, high, RUN):
            _insert(source, start, min(start + RUN, high))
        width = RUN
        while width < BLOCK:  # an even number of times: the block ends where it was
            for start in range(low, high, 2 * width):
                middle, end = min(start + width, high), min(start + 2 * width, high)
                _merge(source, target, start, middle, end, start, end)
            source, target = target, source
            width *= 2
    width = BLOCK
    while width < count:
        for stretch in prange((count + BLOCK - 1) // BLOCK):
            begin = stretch * BLOCK
            start = begin // (2 * width) * (2 * width)
            middle, end = min(start + width, count), min(start + 2 * width, count)
            _merge(packed, other, start, middle, end, begin, min(begin + BLOCK, end))
        packed, other = other, packed
        width *= 2
    return packed


@njit(cache=True, inline="always")
def _insert(run, start, end):  # type: ignore[no-untyped-def]
    """Sort a short run; an element passes those that it is put in front of."""
    for at in range(start + 1, end):
        element, place = run[at], at
        while place > start and run[place - 1] > element:
            run[place] = run[place - 1]
            place -= 1
        run[place] = element - 2 * (at - place)


@njit(cache=True, inline="always")
def _merge(source, target, start, middle, end, begin, until):  # type: ignore[no-untyped-def]
    """Write places `begin` to `until` of what two runs, [start, middle) and [middle, end), merge to. An element of the
    second passes those of the first that are greater: what is left of it.

    The smallest go to the front and the greatest to the back in turn, so that neither waits for the other; and as long
    as no run can come to its end, nobody looks whether it has."""
    left, last_left = _split(source, start, middle, end, begin), _split(source, start, middle, end, until)
    right, last_right = middle + (begin - start) - (left - start), middle + (until - start) - (last_left - start)
    both = min((until - begin) // 2, middle - left, end - right, last_left - start, last_right - middle)
    # Unsigned: a signed index might count from the end, which costs a third of the time to rule out.
    one, at, back, middle = np.uint64(1), np.uint64(begin), np.uint64(until), np.uint64(middle)
    left, right, last_left, last_right = np.uint64(left), np.uint64(right), np.uint64(last_left), np.uint64(last_right)
    for _ in range(both):
        first, second = source[left], source[right]
        is_first = first < second
        target[at] = first if is_first else second - 2 * np.int64(middle - left)  # no branch: none could predict it
        left, right, at = left + np.uint64(is_first), right + np.uint64(not is_first), at + one
        first, second, back = source[last_left - one], source[last_right - one], back - one
        is_first = first > second
        target[back] = first if is_first else second - 2 * np.int64(middle - last_left)
        last_left, last_right = last_left - np.uint64(is_first), last_right - np.uint64(not is_first)
    while left < last_left and right < last_right:
        first, second = source[left], source[right]
        is_first = first < second
        target[at] = first if is_first else second - 2 * np.int64(middle - left)
        left, right, at = left + np.uint64(is_first), right + np.uint64(not is_first), at + one
    while left < last_left:
        target[at] = source[left]
        left, at = left + one, at + one
    while right < last_right:
        target[at] = source[right] - 2 * np.int64(middle - left)
        right, at = right + one, at + one


@njit(cache=True, inline="always")
def _split(source, start, middle, end, place):  # type: ignore[no-untyped-def]
    """The first element of the first run that does not stand before a place of what the two merge to."""
    low, high = max(start, place - (end - middle)), min(middle, place)
    while low < high:
        left = (low + high) // 2
        if source[left] < source[middle + (place - start) - (left - start) - 1]:
            low = left + 1
        else:
            high = left
    return low


def count_firsts(before: np.ndarray, powers: int) -> np.ndarray:
    """Uses that are the first of their row within a step of 2^k tokens, where steps follow each other.

    Args:
        before: as `Uses` has it, [H, T].
        powers: k is below this, at most 31.

    Returns:
        int64 [H, powers]: by column and k.
    """
    lengths = np.array([number.bit_length() for number in range(2**16)], dtype=np.uint8)
    return _by_length(before, lengths)[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1 : powers + 1]


@njit(parallel=True, cache=True)
def _by_length(before, lengths):  # type: ignore[no-untyped-def]
    """Uses [H, 33] by the bits of what the two tokens differ in: in steps of as many they are together, in smaller ones
    apart. First uses are apart in all of them."""
    columns, tokens = before.shape
    uses = np.zeros((columns, 33), dtype=np.int64)
    for column in prange(columns):
        for token in range(tokens):
            previous = before[column, token]
            differ = token ^ previous
            high = differ >> 16
            length = 16 + lengths[high] if high else lengths[differ]
            uses[column, length if previous >= 0 else 32] += 1
    return uses


@njit(parallel=True, cache=True)
def _by_capacity(packed, capacities, columns):  # type: ignore[no-untyped-def]
    """Hits [parts, 2, H, S] in part of the repeats, by the smallest capacity at which they are."""
    parts = (len(packed) + BLOCK - 1) // BLOCK
    sizes = len(capacities)
    hits = np.zeros((parts, 2, columns, sizes), dtype=np.int32)
    for part in prange(parts):
        for at in range(part * BLOCK, min(len(packed), part * BLOCK + BLOCK)):
            distance = (packed[at] & 0xFFFFFFFF) >> 1
            smallest, beyond = 0, sizes
            while smallest < beyond:
                middle = (smallest + beyond) // 2
                if capacities[middle] <= distance:
                    smallest = middle + 1
                else:
                    beyond = middle
            if smallest < sizes:
                hits[part, packed[at] & 1, (packed[at] >> 32) % columns, smallest] += 1
    return hits
