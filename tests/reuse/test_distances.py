"""Every use is counted as a cache would see it: brute force agrees on each hit."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_exp.reuse import distances
from engram_exp.reuse.curves import TableShape, cache_sizes, curves
from engram_exp.reuse.distances import count_firsts, count_hits, find_uses


@st.composite
def streams(draw):
    tokens, columns = draw(st.integers(1, 120)), draw(st.integers(1, 4))
    rows = draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    return random.integers(rows, size=(tokens, columns), dtype=np.int32) + rows * np.arange(columns, dtype=np.int32)


def lru_hits(row_ids, capacity):
    """Hits [2, H] of the early and late tokens, by a cache that is one."""
    tokens, columns = row_ids.shape
    cache, hits = OrderedDict(), np.zeros((2, columns), dtype=np.int64)
    for token, rows in enumerate(row_ids):
        for column, row in enumerate(rows):
            hits[int(2 * token >= tokens), column] += row in cache
            cache[row] = None
            cache.move_to_end(row)
            if len(cache) > capacity:
                cache.popitem(last=False)
    return hits


@settings(max_examples=60, deadline=None)
@given(row_ids=streams(), capacities=st.sets(st.integers(1, 200), min_size=1, max_size=5))
def test_hits_are_those_of_a_cache(row_ids, capacities):
    sizes = np.array(sorted(capacities))
    got = count_hits(find_uses(row_ids).before, sizes)
    want = np.stack([lru_hits(row_ids, size) for size in sizes], axis=-1)
    assert np.array_equal(got, want)


def test_hits_of_more_uses_than_are_sorted_at_a_time():
    random = np.random.default_rng(0)
    row_ids = (random.zipf(1.3, (distances.BLOCK, 3)) % 500 + 500 * np.arange(3)).astype(np.int32)
    sizes = np.array([1, 10, 200, 1500])
    got = count_hits(find_uses(row_ids).before, sizes)
    assert np.array_equal(got, np.stack([lru_hits(row_ids, size) for size in sizes], axis=-1))


@settings(max_examples=60, deadline=None)
@given(row_ids=streams())
def test_uses_are_counted_early_and_late(row_ids):
    uses = find_uses(row_ids)
    half = -(-len(row_ids) // 2)
    for column, counts in zip(row_ids.T, uses.counts, strict=True):
        want = [((column[:half] == row).sum(), (column[half:] == row).sum()) for row in np.unique(column)]
        assert sorted(map(tuple, counts.tolist())) == sorted((int(early), int(late)) for early, late in want)


@settings(max_examples=60, deadline=None)
@given(row_ids=streams(), powers=st.integers(1, 8))
def test_first_uses_of_a_step_are_its_distinct_rows(row_ids, powers):
    got = count_firsts(find_uses(row_ids).before, powers)
    for column, rows in enumerate(row_ids.T):
        for power in range(powers):
            steps = range(0, len(rows), 2**power)
            assert got[column, power] == sum(len(set(rows[start : start + 2**power])) for start in steps)


@settings(max_examples=30, deadline=None)
@given(row_ids=streams().filter(lambda row_ids: len(row_ids) > 1), row_bytes=st.sampled_from([2**16, 2**18]))
def test_curves_are_what_brute_force_gives(row_ids, row_bytes):
    tokens, columns = row_ids.shape
    shape = TableShape([2] * (columns // 2) + [3] * (columns - columns // 2), row_bytes)
    cache, steps = curves(row_ids, shape)
    sizes = cache_sizes(len(np.unique(row_ids)), row_bytes)
    assert cache["cache_rows"].max() == sizes[-1] >= len(np.unique(row_ids))
    late = tokens // 2
    for order in ("all", "3"):
        of_order = np.flatnonzero(np.array(shape.orders) == 3) if order == "3" else np.arange(columns)
        rates = cache[cache["order"] == order].set_index(["policy", "state", "cache_rows"])
        for size in sizes:
            hits = lru_hits(row_ids, size)[:, of_order]
            assert rates.loc["lru", "warm", size].hit_rate == pytest.approx(hits[1].sum() / (late * len(of_order)))
            assert rates.loc["lru", "cold", size].hit_rate == pytest.approx(hits.sum() / (tokens * len(of_order)))
        # A cache for all rows holds those that the first half used.
        half = tokens - late
        known = sum(np.isin(row_ids[half:, column], row_ids[:half, column]).sum() for column in of_order)
        static = rates.loc["static", "warm", sizes[-1]]
        assert static.hit_rate == pytest.approx(known / (late * len(of_order)))
        assert static.saved_bytes_per_token == pytest.approx(static.hit_rate * len(of_order) * row_bytes)
    whole = steps[(steps["order"] == "all") & (steps["step_tokens"] == 1)]
    assert whole["distinct_share"].item() == 1, "no row stands in two columns"


def test_a_static_cache_holds_what_the_first_half_used_most():
    early = [[0]] * 5 + [[1]] * 3 + [[2]] * 1 + [[3]] * 1
    late = [[1]] * 6 + [[2]] * 1 + [[3]] * 2 + [[9]] * 1
    row_bytes = 2**20
    cache, _ = curves(np.array(early + late), TableShape([2], row_bytes))
    static = cache[(cache["policy"] == "static") & (cache["order"] == "all")].set_index("cache_rows")["hit_rate"]
    assert static.to_dict() == {1: 0.0, 2: 0.6, 4: pytest.approx(0.9), 8: pytest.approx(0.9)}


@pytest.mark.parametrize("shape", [(1, 3), (2**29, 4)])
def test_what_cannot_be_counted_is_refused(shape):
    with pytest.raises(ValueError, match=r"tokens: must be 2 to \d+"):
        curves(np.broadcast_to(np.int32(0), shape), TableShape([2] * shape[1], 64))
