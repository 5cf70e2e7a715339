"""Rows in memory in front of a file: the hottest of a profile, and the same bits as without them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU
from test_from_file import require_right, table_in

from engram_exp.errors import ConfigError, SkippedError
from engram_exp.layer.row_format import RowFormat
from engram_exp.steps.lookup.direct import DirectLookup
from engram_exp.steps.lookup.from_file import FileLookup
from engram_exp.steps.lookup.hot_rows import FINDING_BYTES, HotRows, hottest
from engram_exp.steps.lookup.io_uring import IoUringLookup
from engram_exp.steps.lookup.pread import PreadLookup

SPLIT = RowFormat(40, torch.bfloat16, 32, split=True)
PROFILE = np.repeat([7, 3, 250, 299, 0], [5, 4, 4, 2, 1])
WAYS = {
    "pread": lambda *given, **hot: PreadLookup(*given, 4, **hot),
    "direct": lambda *given, **hot: DirectLookup(*given, 4, 4096, **hot),
    "io_uring": lambda *given, **hot: IoUringLookup(*given, 4, 4096, **hot),
}


def lookup_by(way, table, rows, profile=PROFILE, tokens=20, columns=2):
    row_bytes = table.row_format.width * table.row_format.storage_dtype.itemsize
    hot_gb = rows * (row_bytes + FINDING_BYTES) / 1e9 + 1e-12
    try:
        return WAYS[way](table, tokens, columns, CPU, hot_gb=hot_gb, profile=lambda *_: profile, profile_tokens=9)
    except (ConfigError, SkippedError) as error:
        pytest.skip(str(error))  # of this file system, or this kernel


@given(row_ids=st.lists(st.integers(0, 20), max_size=60), most=st.integers(0, 25))
def test_the_hottest_are_asked_for_at_least_as_often_as_any_other(row_ids, most):
    asked = np.array(row_ids, dtype=np.int32)
    chosen = hottest(asked, most)
    counts = {row: row_ids.count(row) for row in set(row_ids)}
    assert len(chosen) == min(most, len(counts))
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    left = [count for row, count in counts.items() if row not in chosen]
    assert all(counts[row] >= max(left, default=0) for row in chosen.tolist())


@settings(deadline=None)
@given(kept=st.sets(st.integers(0, 2**40), max_size=50), asked=st.lists(st.integers(0, 2**40), max_size=50))
def test_rows_that_are_there_are_found_and_no_others(kept, asked):
    row_ids = np.array(sorted(kept), dtype=np.int64)
    hot = HotRows(row_ids, 8)
    hot.rows[:] = row_ids[:, None].view(np.uint8)
    wanted = np.array([*asked, *kept], dtype=np.int64)
    out = np.zeros((len(wanted), 8), dtype=np.uint8)
    missing = hot.take(wanted, out)
    assert missing.tolist() == [number for number, row in enumerate(wanted.tolist()) if row not in kept]
    found = np.setdiff1d(np.arange(len(wanted)), missing)
    assert (out[found].view(np.int64)[:, 0] == wanted[found]).all()


@pytest.mark.parametrize("row_format", [RowFormat(24, torch.bfloat16), SPLIT])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("way", WAYS)
def test_rows_are_the_same_with_some_of_them_in_memory(tmp_path, way, rows, row_format):
    table = table_in(tmp_path, 300, row_format, resident_scales=row_format.split)
    lookup = lookup_by(way, table, rows)
    row_ids = torch.tensor([7, 3, 250, 299, 0, 1, 7, 7, 298, 5], dtype=torch.int32).view(1, 5, 2)
    require_right(lookup, table, row_ids)
    asked, found = HotRows.asked, HotRows.found
    require_right(lookup, table, row_ids)
    kept = {1: [7], 3: [3, 7, 250], 100: [0, 3, 7, 250, 299]}[rows]
    assert table.hot.row_ids.tolist() == kept
    assert HotRows.asked - asked == 10
    assert HotRows.found - found == sum(row in kept for row in row_ids.view(-1).tolist())
    before = FileLookup.requested
    require_right(lookup, table, torch.full((1, 3, 2), 7))
    assert FileLookup.requested == before, "nothing is read"
    require_right(lookup, table, torch.arange(40).view(2, 10, 2))
    assert lookup_by(way, table, rows)(row_ids) is not None
    assert table.hot.row_ids.tolist() == kept, "all lookups of a table share them"


def test_a_profile_of_nothing_keeps_nothing(tmp_path):
    table = table_in(tmp_path, 300, RowFormat(24, torch.bfloat16))
    require_right(lookup_by("pread", table, 10, np.empty(0, dtype=np.int64)), table, torch.arange(40).view(1, 20, 2))
    assert len(table.hot.row_ids) == 0


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"hot_gb": -1.0}, "hot_gb"),
        ({"profile_tokens": 0}, "profile_tokens"),
        ({"hot_gb": 1.0, "state": "cold"}, "state"),
    ],
)
def test_numbers_that_cannot_be_are_refused(tmp_path, options, key):
    table = table_in(tmp_path, 300, RowFormat(24, torch.bfloat16))
    with pytest.raises(ConfigError, match=rf"^lookup\.{key}="):
        PreadLookup(table, 1, 1, CPU, 1, **options)
