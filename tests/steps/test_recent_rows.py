"""Rows in memory in front of a file: those asked for last, exactly, and the same bits as without them."""

from collections import OrderedDict
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU
from test_from_file import require_right, table_in
from test_hot_rows import SPLIT, WAYS

from engram_exp.errors import ConfigError, MismatchError, SkippedError
from engram_exp.layer.row_format import RowFormat
from engram_exp.reuse.distances import count_hits, find_uses
from engram_exp.run.row_cache import require_kept
from engram_exp.steps.lookup.from_file import FileLookup
from engram_exp.steps.lookup.places import forget, place_of, places_for
from engram_exp.steps.lookup.recent_rows import KEEPING_BYTES, RecentRows


class LeastRecentlyUsed(OrderedDict):
    """A cache that takes one row id after the other."""

    def __init__(self, rows):
        self.most = rows

    def hits(self, row_ids):
        found = 0
        for row_id in row_ids:
            found += row_id in self
            self[row_id] = None
            self.move_to_end(row_id)
            if len(self) > self.most:
                self.popitem(last=False)
        return found


def contents(row_ids):
    return np.asarray(row_ids, dtype=np.int64).reshape(-1, 1).view(np.uint8)


def look_up(recent, row_ids):
    """The rows of row ids, read as a file's are: the number of its first eight bytes is the row id."""
    asked, out = np.array(row_ids, dtype=np.int32), np.zeros((len(row_ids), 8), dtype=np.uint8)
    missing = recent.take(asked, out)
    recent.put(asked, missing, contents(asked[missing]), out)
    return out.view(np.int64)[:, 0].tolist(), len(missing)


@settings(deadline=None)
@given(
    rows=st.integers(1, 12),
    calls=st.lists(st.lists(st.integers(0, 15), min_size=1, max_size=40), min_size=1, max_size=8),
)
def test_what_hits_and_what_goes_is_as_in_a_least_recently_used_cache(rows, calls):
    recent, model = RecentRows(rows, 8), LeastRecentlyUsed(rows)
    for number, row_ids in enumerate(calls):
        if number == 5:
            recent.reset()
            model.clear()
        before = int(recent.counts[0])
        got, read = look_up(recent, row_ids)
        hits = model.hits(row_ids)
        assert got == row_ids
        assert (int(recent.counts[0]) - before, read) == (hits, len(row_ids) - hits)
        ((of, found),) = recent.kept(None)
        kept = {row: bytes(of_row) for row, of_row in zip(of.tolist(), found.tolist(), strict=True)}
        assert kept == {row: contents([row]).tobytes() for row in model}
    assert sum(len(of) for of, _ in recent.kept(2)) == min(2, len(model))


@settings(deadline=None)
@given(numbers=st.lists(st.tuples(st.integers(0, 2**40) | st.integers(0, 30), st.booleans()), max_size=200))
def test_what_was_forgotten_is_not_found_and_all_else_is(numbers):
    places, known = places_for(200), set()
    for number, stays in numbers:
        at = place_of(number, places)
        assert (places[at, 0] != 0) == (number in known)
        places[at, 0], places[at, 1] = number + 1, -number
        known.add(number)
        if not stays:
            forget(number, places)
            known.remove(number)
    assert {int(places[place_of(number, places), 1]) for number in known} == {-number for number in known}
    assert np.count_nonzero(places[:, 0]) == len(known)


def test_hits_lie_on_the_curve():
    row_ids = (np.random.default_rng(0).zipf(1.3, (800, 3)) % 300 + 300 * np.arange(3)).astype(np.int32)
    recent = RecentRows(100, 8)
    steps = np.split(row_ids.reshape(-1, 8 * 3), 2)
    half = [sum(look_up(recent, step.tolist())[1] for step in part) for part in steps]
    early, late = count_hits(find_uses(row_ids).before, np.array([100])).sum(axis=(1, 2))
    assert [1200 - missed for missed in half] == [early, late]


def lookup_by(way, table, rows, **options):
    row_bytes = table.row_format.width * table.row_format.storage_dtype.itemsize
    hot_gb = rows * (row_bytes + KEEPING_BYTES) / 1e9 + 1e-12
    try:
        return WAYS[way](table, 20, 2, CPU, hot_gb=hot_gb, policy="lru", **options)
    except (ConfigError, SkippedError) as error:
        pytest.skip(str(error))  # of this file system, or this kernel


@pytest.mark.parametrize("row_format", [RowFormat(24, torch.bfloat16), SPLIT])
@pytest.mark.parametrize("way", WAYS)
def test_rows_are_the_same_with_those_asked_for_last_in_memory(tmp_path, way, row_format):
    table = table_in(tmp_path, 300, row_format, resident_scales=row_format.split)
    random, lookups = np.random.default_rng(0), [lookup_by(way, table, 7) for _ in range(2)]
    model = LeastRecentlyUsed(7)
    for number in range(12):
        row_ids = torch.from_numpy(random.integers(0, 12, (1, int(random.integers(1, 20)), 2), dtype=np.int32))
        before = int(lookups[0].counts[0])
        require_right(lookups[number % 2], table, row_ids)
        assert int(lookups[0].counts[0]) - before == model.hits(row_ids.view(-1).tolist()), "they share"
    require_kept("lookup", lookups[0], table)
    before = FileLookup.requested
    require_right(lookups[0], table, torch.tensor([[list(model)[:2]]]))
    assert FileLookup.requested == before, "nothing is read"
    table.hot.rows[3, 0] ^= 1
    with pytest.raises(MismatchError, match=r"^lookup: 1 of 7 rows in the cache differ from the table"):
        require_kept("lookup", lookups[1], table)


def test_what_could_not_be_read_is_not_taken_for_kept(tmp_path):
    table = table_in(tmp_path, 300, RowFormat(24, torch.bfloat16))
    lookup, row_ids = lookup_by("pread", table, 20), torch.arange(8).view(1, 4, 2)
    failing = patch.object(FileLookup, "_read", side_effect=OSError(5, "Input/output error"))
    with failing, pytest.raises(OSError, match="Input"):
        lookup(row_ids)
    require_right(lookup, table, row_ids)
    assert lookup.counts.tolist() == [0, 16]


def test_memory_for_no_row_at_all_is_refused(tmp_path):
    table = table_in(tmp_path, 300, RowFormat(24, torch.bfloat16))
    with pytest.raises(ConfigError, match=r"^lookup\.hot_gb=1e-09: must hold a row, which takes"):
        WAYS["pread"](table, 1, 1, CPU, hot_gb=1e-9, policy="lru")
