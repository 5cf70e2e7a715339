"""Files are whole or not there, are known by what is in them, and locks stay with their process."""

import errno
import fcntl
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_exp.machine import files
from engram_exp.machine.files import content_digest, kept_from_children, write_text


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["os.replace", "pathlib.Path.write_text"])
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch, name):
    write_text(tmp_path / "a.csv", "before")
    monkeypatch.setattr(name, full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.csv", "after")
    assert [file.name for file in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_bytes() == b"before"


@given(st.text(alphabet=st.characters(codec="utf-8")))
def test_what_is_written_is_read_again(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text"
    write_text(path, text)
    assert path.read_bytes() == text.encode()


def test_a_folder_is_what_its_files_hold(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    first = content_digest(tmp_path)
    (tmp_path / ".hidden").write_text("three")
    assert content_digest(tmp_path) == first
    (tmp_path / "deep/a.txt").write_text("1ne")
    changed = content_digest(tmp_path)
    (tmp_path / "deep/a.txt").rename(tmp_path / "deep/c.txt")
    assert len({first, changed, content_digest(tmp_path)}) == 3


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.write_text("one")
    first = content_digest(file)
    monkeypatch.setattr("pathlib.Path.open", full)
    assert content_digest(file) == first
    os.utime(file, (1, 1))
    assert content_digest(file) != first, "it cannot be read any more"


def test_what_is_missing_becomes_another_when_it_is_there(tmp_path):
    missing = content_digest(tmp_path / "a")
    (tmp_path / "a").write_text("")
    assert content_digest(tmp_path / "a") != missing


def test_beyond_a_bound_size_and_time_decide(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READ_BYTES", 3)
    for name in ("a", "b"):
        (tmp_path / name).write_text("xyz")
    first = content_digest(tmp_path)
    (tmp_path / "b").write_text("zyx")
    os.utime(tmp_path / "b", (1, 1))
    assert content_digest(tmp_path) != first


def test_a_forked_child_does_not_hold_a_lock(tmp_path):
    def is_free():
        with (tmp_path / "lock").open("w") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with kept_from_children(lock.fileno()):
            ready, tell = os.pipe()
            child = os.fork()
            if not child:
                os.write(tell, b".")
                signal.pause()
                os._exit(0)
            os.read(ready, 1)
            assert not is_free()
    try:
        assert is_free()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tell)
