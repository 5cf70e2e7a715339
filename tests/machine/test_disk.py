"""What a disk is, and what of a file lies in memory."""

import os
from pathlib import Path

import pytest

from engram_exp.machine import disk, page_cache

MOUNTS = """\
22 1 254:1 / / rw shared:1 - ext4 /dev/vda1 rw
30 22 0:28 / /dev/shm rw - tmpfs tmpfs rw
31 22 259:0 / /fast\\040disk rw master:2 - xfs /dev/nvme0n1 rw
32 22 259:0 / /fast rw - overlay overlay rw
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [("/home/me", ("ext4", "/dev/vda1")), ("/dev/shm/a/b", ("tmpfs", "tmpfs")), ("/faster", ("ext4", "/dev/vda1")),
     ("/fast disk/a", ("xfs", "/dev/nvme0n1"))],
)  # fmt: skip
def test_the_longest_mount_above_a_path_is_its_file_system(tmp_path, monkeypatch, path, found):
    (tmp_path / "mounts").write_text(MOUNTS)
    monkeypatch.setattr(disk, "MOUNTS", tmp_path / "mounts")
    assert disk.file_system(Path(path)) == found


def test_what_the_kernel_does_not_tell_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "MOUNTS", tmp_path / "none")
    monkeypatch.setattr(disk, "OWN_IO", tmp_path / "none")
    assert disk.file_system(tmp_path) == ("", "")
    assert disk.read_bytes() is None
    (tmp_path / "none").write_text("rchar: 5\n")
    assert disk.read_bytes() is None
    (tmp_path / "none").write_text("rchar: 5\nread_bytes: 4096\n")
    assert disk.read_bytes() == 4096


def test_pages_are_dropped_and_loaded(tmp_path):
    (tmp_path / "file").write_bytes(bytes(2**20 + 1))
    descriptor = os.open(tmp_path / "file", os.O_RDWR)
    os.fsync(descriptor)
    try:
        shares = [page_cache.resident_share(descriptor)]
        page_cache.drop(descriptor)
        shares.append(page_cache.resident_share(descriptor))
        page_cache.load(descriptor)
        shares.append(page_cache.resident_share(descriptor))
        if disk.file_system(tmp_path)[0] in disk.IN_MEMORY or None in shares:
            pytest.skip("files here lie in memory")
        assert shares == [1.0, 0.0, 1.0]
        os.truncate(tmp_path / "file", 0)
        assert page_cache.resident_share(descriptor) is None
    finally:
        os.close(descriptor)
