"""Every way to read rows of a file gives the bits of the table in memory."""

import mmap
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CPU
from test_lookup import row_formats, some_row_ids

from engram_exp.errors import ConfigError, SkippedError
from engram_exp.layer.row_format import RowFormat
from engram_exp.steps.lookup import from_file
from engram_exp.steps.lookup.direct import DirectLookup
from engram_exp.steps.lookup.from_file import FileLookup
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.lookup.io_uring import IoUringLookup
from engram_exp.steps.lookup.mmap import POPULATE_READ, MmapLookup
from engram_exp.steps.lookup.pread import PreadLookup
from engram_exp.steps.tables.file import FileTable
from engram_exp.steps.tables.host import HostTable

WAYS = ("mmap", "pread", "direct", "io_uring")


def lookup_by(way, table, max_tokens, columns, depth=4, block_bytes=4096, hint="none"):
    given = table, max_tokens, columns, CPU
    if way == "mmap":
        return MmapLookup(*given, hint)
    if way == "pread":
        return PreadLookup(*given, depth)
    try:
        return {"direct": DirectLookup, "io_uring": IoUringLookup}[way](*given, depth, block_bytes)
    except (ConfigError, SkippedError) as error:
        pytest.skip(str(error))  # of this file system, or this kernel


def table_in(folder, rows, row_format, seed=0, resident_scales=False):
    return FileTable(rows, row_format, seed, CPU, folder, resident_scales)


def path_of(table):
    return Path(table.files[0].path)


def require_right(lookup, table, row_ids):
    tokens = row_ids.shape[0] * row_ids.shape[1]
    got = lookup(row_ids)
    assert torch.equal(got, table.contents(row_ids).reshape(tokens, -1))


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300),
    row_format=row_formats(),
    seed=st.integers(0, 2**31),
    depth=st.integers(1, 9),
    block_bytes=st.sampled_from([512, 4096]),
    staged_blocks=st.integers(1, 30),
    resident=st.booleans(),
    hint=st.sampled_from(["none", "willneed", "populate"]),
    data=st.data(),
)
@pytest.mark.parametrize("way", WAYS)
def test_a_row_of_a_file_equals_the_contents(
    way, rows, row_format, seed, depth, block_bytes, staged_blocks, resident, hint, data
):
    row_ids = some_row_ids(data, rows, seed)
    staged, at_a_time = staged_blocks * block_bytes, data.draw(st.integers(1, 40))
    with (
        TemporaryDirectory() as folder,
        patch.object(from_file, "STAGED_BYTES", staged),
        patch("engram_exp.steps.lookup.pread.ROWS_AT_A_TIME", at_a_time),
    ):
        table = table_in(folder, rows, row_format, seed, resident and len(row_format.part_widths) > 1)
        tokens = row_ids.shape[0] * row_ids.shape[1]
        lookup = lookup_by(way, table, tokens + 1, row_ids.shape[2], depth, block_bytes, hint)
        for asked in (row_ids, row_ids.flip(0), row_ids.long()):
            require_right(lookup, table, asked)
        table.make_cold()
        require_right(lookup, table, row_ids)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("row_values", [1, 66, 1024, 1025, 3000])
def test_rows_straddle_blocks_or_are_larger(tmp_path, way, row_values):
    """Of 4 bytes to 12,000; all rows, the first and the last among them, and one alone."""
    table = table_in(tmp_path, 50, RowFormat(row_values, torch.float32))
    lookup = lookup_by(way, table, 50, 2)
    require_right(lookup, table, torch.stack([torch.arange(50), torch.arange(50).flip(0)], dim=1).view(1, 50, 2))
    for row in (0, 17, 49):
        require_right(lookup, table, torch.tensor([[[row, row]]], dtype=torch.int32))


@pytest.mark.parametrize("way", ["direct", "io_uring"])
def test_a_block_is_read_once_and_neighbours_together(tmp_path, way):
    table = table_in(tmp_path, 1000, RowFormat(64, torch.float32))  # 16 rows to a block, the first behind the header
    lookup = lookup_by(way, table, 100, 1)
    before = FileLookup.requested
    require_right(lookup, table, torch.tensor([160, 161, 175, 160, 170]).view(1, 5, 1))
    assert FileLookup.requested - before == 1, "five rows of one block"
    require_right(lookup, table, torch.tensor([160, 176, 192, 320, 161]).view(1, 5, 1))
    assert FileLookup.requested - before == 3, "three neighbours, and one by itself"


@pytest.mark.parametrize("way", WAYS)
def test_row_ids_outside_of_the_table_are_an_error(tmp_path, way):
    table = table_in(tmp_path, 10, RowFormat(4, torch.float32))
    lookup = lookup_by(way, table, 1, 3, hint="populate")
    for row_id in (-1, 10):
        with pytest.raises(IndexError, match="1 row ids are outside of 0 to 9"):
            lookup(torch.tensor([[[0, row_id, 9]]], dtype=torch.int32))


@pytest.mark.parametrize("way", ["pread", "direct", "io_uring"])
def test_a_file_that_is_cut_while_it_is_read_is_told(tmp_path, way):
    table = table_in(tmp_path, 1000, RowFormat(64, torch.float32))
    lookup = lookup_by(way, table, 10, 1)
    os.truncate(path_of(table), 4096)
    with pytest.raises(ConfigError, match=r"^table\.path=.*: has 4,096 bytes, and had 262,144 when it was checked"):
        lookup(torch.arange(10).view(1, 10, 1))
    with pytest.raises(ConfigError, match="was checked; delete it"):
        lookup_by("pread", table_like(table), 10, 1)


def table_like(table):
    """The same, opened again behind the check."""
    with patch("engram_exp.steps.tables.row_file.RowFile.ready"):
        return table_in(path_of(table).parent, table.rows, table.row_format, table.seed)


def test_a_table_in_memory_has_no_file():
    table = HostTable(10, RowFormat(4, torch.float32), 0, CPU, huge_pages=False, pinned=False)
    for way in WAYS:
        with pytest.raises(ConfigError, match=r"^lookup: .*which strategy=disk has"):
            lookup_by(way, table, 1, 1) if way in ("mmap", "pread") else DirectLookup(table, 1, 1, CPU, 1, 4096)


def test_any_lookup_of_the_host_reads_a_file_as_memory(tmp_path):
    table = table_in(tmp_path, 100, RowFormat(40, torch.bfloat16, 32, split=True))
    require_right(GatherLookup(table, 50, 2, CPU), table, torch.arange(100).view(1, 50, 2))


def test_what_a_kernel_does_not_take_is_refused(tmp_path, monkeypatch):
    table = table_in(tmp_path, 100, RowFormat(8, torch.float32))
    with pytest.raises(ConfigError, match=r"^lookup\.block_bytes=1024: must be one of 512, 4096"):
        DirectLookup(table, 1, 1, CPU, 1, 1024)
    assert POPULATE_READ not in vars(mmap).values(), "Python names it now: take its name"
    monkeypatch.setitem(__import__("engram_exp.steps.lookup.mmap", fromlist=["HINTS"]).HINTS, "populate", 9999)
    with pytest.raises(ConfigError, match=r"^lookup\.hint=populate: this kernel does not take it"):
        lookup_by("mmap", table, 1, 1, hint="populate")


def test_a_disk_of_larger_blocks_is_told(tmp_path, monkeypatch):
    table = table_in(tmp_path, 100, RowFormat(8, torch.float32))
    monkeypatch.setattr(from_file.OpenFile, "finish", lambda *_: (_ for _ in ()).throw(OSError(22, "Invalid argument")))
    with pytest.raises(
        ConfigError, match=r"^lookup\.block_bytes=512: .*reads no such blocks .*; 4096, or lookup=pread"
    ):
        DirectLookup(table, 1, 1, CPU, 1, 512)
