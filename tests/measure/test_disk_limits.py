"""What a disk can do: measured on a file, kept, and a bound of rows that are read from it."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.errors import SkippedError
from engram_exp.machine.requests import OpenFile
from engram_exp.measure import disk_limits
from engram_exp.measure.limits import Limits
from engram_exp.measure.rates import disk

MIB = 2**20
PEAKS = {
    "disk_reads_per_s": {
        "4096": {"1": 10e3, "16": 80e3, "64": 100e3},
        "262144": {"1": 5e3, "16": 10e3, "64": 10e3},
    }
}


def limit_ms(rows, table_bytes=2**40, peaks=PEAKS):
    load = SimpleNamespace(dtype="bfloat16", row_bytes=128, spread_bytes=1, table_bytes=table_bytes, row_ids=rows)
    found = Limits({}).beside(peaks).of({"disk rows": rows}, load)
    assert found.by == "disk rows"
    return found.ms


def test_rows_that_lie_apart_take_a_read_each():
    assert limit_ms(10_000) == pytest.approx(100, rel=1e-3)


@pytest.mark.parametrize(("rows", "ms"), [(1, 0.1), (2, 0.1), (16, 0.2), (17, 0.17), (64, 0.64)])
def test_no_more_reads_are_under_way_than_there_are_rows_and_one_takes_a_latency(rows, ms):
    assert limit_ms(rows) == pytest.approx(ms, rel=1e-3)


def test_many_rows_of_a_small_table_are_read_in_large_blocks():
    """64 MiB: 16,384 blocks of 4 KiB or 256 of 256 KiB, all of which a million rows lie in."""
    assert limit_ms(10**6, 64 * MIB) == pytest.approx(256 / 10e3 * 1e3)
    assert limit_ms(100, 64 * MIB) == pytest.approx(16_384 * (1 - np.exp(-100 / 16_384)) / 100e3 * 1e3)


@given(rows=st.integers(1, 10**7), more=st.integers(1, 10**6), table_mib=st.integers(1, 10**6))
def test_more_rows_of_a_larger_table_take_no_less(rows, more, table_mib):
    if rows >= 64:  # below, more rows may keep more reads under way
        assert limit_ms(rows + more, table_mib * MIB) >= limit_ms(rows, table_mib * MIB) * (1 - 1e-9)
    assert limit_ms(rows, 2 * table_mib * MIB) >= limit_ms(rows, table_mib * MIB) * (1 - 1e-9)


def test_what_was_not_measured_bounds_nothing():
    assert Limits({}).of({"disk rows": 5}, SimpleNamespace(dtype="", table_bytes=1, row_ids=1, row_bytes=1)) is None


def test_usual_blocks_are_told():
    assert list(disk.in_words(PEAKS, "bfloat16")) == ["disk 100 k reads/s of 4096 bytes, 100 us alone"]
    assert list(disk.in_words({}, "bfloat16")) == []


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "SECONDS", 0.0)
    (tmp_path / "file").write_bytes(bytes(64 * 1024))
    return OpenFile(str(tmp_path / "file"), 64 * 1024)


def peaks_of(file, tmp_path, said, refresh=False):
    return disk_limits.disk_peaks(tmp_path / "limits", file, {"host": "a"}, refresh=refresh, announce=said.append)


@pytest.mark.parametrize("has_ring", [True, False])
def test_a_disk_is_measured_once_and_kept(file, tmp_path, monkeypatch, has_ring):
    if not has_ring:
        monkeypatch.setattr(disk, "Ring", lambda *_: (_ for _ in ()).throw(SkippedError("none")))
    said = []
    peaks = peaks_of(file, tmp_path, said)
    if not peaks:
        pytest.skip("nothing here is read past the page cache")
    sizes = peaks["disk_reads_per_s"]
    assert set(sizes) <= {"512", "4096", "16384", "65536"}, "no block is larger than the file"
    assert all(set(by_depth) == {"1", "4", "16", "64", "256"} for by_depth in sizes.values())
    assert all(rate > 0 for by_depth in sizes.values() for rate in by_depth.values())
    assert peaks_of(file, tmp_path, said) == peaks
    assert len(said) == 1
    peaks_of(file, tmp_path, said, refresh=True)
    assert len(said) == 2
    (kept,) = (tmp_path / "limits").iterdir()
    kept.write_text(json.dumps({"peaks": {"disk_reads_per_s": {"4096": {"1": -1}}}}))
    assert peaks_of(file, tmp_path, said)["disk_reads_per_s"].keys() == sizes.keys()
    assert len(said) == 3


def test_a_disk_that_nothing_reads_past_the_cache_of_has_no_limit(file, monkeypatch):
    def refusing(*_, **__):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(disk, "OpenFile", refusing)
    assert disk.curves(file.path, file.size_bytes) == {}


def test_limits_that_cannot_be_kept_cost_a_warning(file, tmp_path, caplog):
    (tmp_path / "limits").write_text("a file")
    peaks_of(file, tmp_path, [])
    assert "is not kept for the next run" in caplog.text
