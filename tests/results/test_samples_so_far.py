"""Samples are kept as they come, for the case that their run does not live to write them."""

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_exp import load_samples
from engram_exp.results import write
from engram_exp.results.integrity import DIGESTS, digests_in
from engram_exp.results.write import SAMPLES_SO_FAR, SampleFile, write_run

FAILED = [{"run_id": "a", "status": "timeout", "case": "full"}]


def sample(number):
    return {"run_id": "a", "case": "full", "iteration": number, "order": number, "wall_ms": number + 1.5}


@pytest.fixture
def clock(monkeypatch):
    """Seconds, set by the test."""
    now = [100.0]
    monkeypatch.setattr(write.time, "monotonic", lambda: now[0])
    return now


def lines(folder):
    file = folder / SAMPLES_SO_FAR
    return file.read_text().splitlines() if file.exists() else []


def test_they_are_written_at_most_once_a_second(tmp_path, clock):
    kept = SampleFile(tmp_path)
    kept.append([])
    assert lines(tmp_path) == []
    assert kept.is_due
    kept.append([sample(0)])
    assert len(lines(tmp_path)) == 2, "a header and the first sample"
    clock[0] += 0.9
    assert not kept.is_due
    clock[0] += 0.2
    assert kept.is_due
    kept.append([sample(1), sample(2)])
    assert not kept.is_due
    assert len(lines(tmp_path)) == 4
    assert load_samples(tmp_path).empty, "they do not count until the run is over"


@pytest.mark.slow
@given(cut=st.integers(0, 200))
def test_whatever_a_killed_run_had_written_its_whole_lines_are_its_samples(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("run")
    kept = SampleFile(folder)
    kept.append(map(sample, range(5)))
    text = (folder / SAMPLES_SO_FAR).read_bytes()[:-cut] if cut else (folder / SAMPLES_SO_FAR).read_bytes()
    (folder / SAMPLES_SO_FAR).write_bytes(text)
    write_run(folder, {}, FAILED)
    whole = max(0, text.count(b"\n") - 1)
    assert load_samples(folder)["iteration"].tolist() == list(range(whole))
    assert ("samples.csv" in digests_in(folder / "environment.json")) == (whole > 0)
    assert not (folder / SAMPLES_SO_FAR).exists()


def test_what_a_run_gives_itself_takes_their_place(tmp_path):
    SampleFile(tmp_path).append([sample(0)])
    write_run(tmp_path, {}, FAILED, map(sample, range(3)))
    assert len(load_samples(tmp_path)) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["environment.json", "results.csv", "samples.csv"]


def test_those_of_an_earlier_run_are_dropped(tmp_path):
    SampleFile(tmp_path).append([sample(0)])
    SampleFile(tmp_path)
    write_run(tmp_path, {}, FAILED)
    assert DIGESTS in (tmp_path / "environment.json").read_text()
    assert not (tmp_path / "samples.csv").exists()


def test_a_full_disk_costs_a_warning(tmp_path, clock, monkeypatch, caplog):
    kept = SampleFile(tmp_path)
    kept.append([sample(0)])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", full)
        clock[0] += 2
        kept.append([sample(1)])
    clock[0] += 2
    kept.append([sample(2)])
    assert caplog.text.count("No space left on device") == 1
    write_run(tmp_path, {}, FAILED)
    assert load_samples(tmp_path)["iteration"].tolist() == [0], "nothing stands behind a gap"
