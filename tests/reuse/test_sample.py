"""What a run says of rows that come again is what the curves count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_exp.reuse.curves import TableShape, curves
from engram_exp.reuse.sample import CACHE_BYTES, repeat_distances, sample_reuse


def by_brute_force(row_ids):
    last, places, distances = {}, [], []
    for place, row in enumerate(row_ids):
        if row in last:
            places.append(place)
            distances.append(len(set(row_ids[last[row] + 1 : place])))
        last[row] = place
    return places, distances


@settings(max_examples=150, deadline=None)
@given(row_ids=st.lists(st.integers(0, 12), min_size=1, max_size=70), capacity=st.integers(1, 12))
def test_distances_and_hits_are_those_of_brute_force(row_ids, capacity):
    places, distances = by_brute_force(row_ids)
    found = repeat_distances(np.array(row_ids, dtype=np.int32))
    assert [array.tolist() for array in found] == [places, distances]
    sample = sample_reuse(np.array(row_ids), CACHE_BYTES // capacity)
    half = len(row_ids) // 2
    late = [distance < capacity for place, distance in zip(places, distances, strict=True) if place >= half]
    assert sample.hit_rate == pytest.approx(sum(late) / (len(row_ids) - half))
    assert sample.distance_rows == (np.median(distances) if distances else None)


def test_the_hit_rate_lies_on_the_curve():
    row_ids = (np.random.default_rng(0).zipf(1.3, (1000, 3)) % 500 + 500 * np.arange(3)).astype(np.int32)
    row_bytes = 2**17
    cache, _ = curves(row_ids, TableShape([2, 2, 3], row_bytes))
    warm = cache[(cache["policy"] == "lru") & (cache["state"] == "warm") & (cache["order"] == "all")]
    on_curve = warm.set_index("cache_rows").loc[CACHE_BYTES // row_bytes].hit_rate
    assert 0.1 < on_curve < 0.9
    assert sample_reuse(row_ids.ravel(), row_bytes).hit_rate == pytest.approx(on_curve)
