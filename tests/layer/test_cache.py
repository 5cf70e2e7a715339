"""What is kept on disk costs a warning, not the run, where it cannot be kept or read."""

import errno
import os
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.layer.cache import cached_array

ARRAY = np.arange(4096)


def build():
    return ARRAY


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_a_warning_and_keeps_no_half_file(small_disk, caplog):
    (small_disk / "other").write_bytes(bytes(48 * 1024))
    assert np.array_equal(cached_array(small_disk, "a", build), ARRAY)
    assert "a.npz cannot be kept for the next run ([Errno 28] No space left on device)" in caplog.text
    assert [file.name for file in small_disk.iterdir()] == ["other"]
    (small_disk / "other").unlink()
    for _ in range(2):
        assert np.array_equal(cached_array(small_disk, "a", build), ARRAY)
    assert [file.name for file in small_disk.iterdir()] == ["a.npz"]


def test_a_disk_that_fills_up_keeps_no_half_file(tmp_path, caplog, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    assert np.array_equal(cached_array(tmp_path, "a", build), ARRAY)
    assert "cannot be kept" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_cache_that_may_not_be_read_is_not_called_damaged(tmp_path, caplog, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("numpy.load", refuse)
    assert np.array_equal(cached_array(tmp_path, "a", build), ARRAY)
    assert "a.npz cannot be read" in caplog.text
    assert "damaged" not in caplog.text


@pytest.mark.slow
@given(st.integers(0), st.integers(1, 255))
def test_whatever_byte_is_damaged_the_array_is_right(tmp_path_factory, place, flip):
    folder = tmp_path_factory.getbasetemp() / "cache"
    cached_array(folder, "a", build)
    stored = bytearray((folder / "a.npz").read_bytes())
    stored[place % len(stored)] ^= flip
    (folder / "a.npz").write_bytes(stored)
    assert np.array_equal(cached_array(folder, "a", build), ARRAY)
