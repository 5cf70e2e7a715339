"""How the program waits: for a worker, and for its turn on the machine."""

import fcntl
import subprocess
import sys

import pytest

from engram_exp import campaign, job
from engram_exp.campaign import _turn, _wait
from engram_exp.job import fingerprint

NAP = [sys.executable, "-c", "import sys; sys.stdin.read(); sys.exit(7)"]


@pytest.fixture
def worker():
    process = subprocess.Popen(NAP, stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()


@pytest.fixture(params=["pidfd", "polling"])
def way(request, monkeypatch):
    def refuse(pid):
        raise OSError

    if request.param == "polling":
        monkeypatch.setattr("os.pidfd_open", refuse)


def test_a_worker_is_waited_for_no_longer_than_asked(worker, way):
    with pytest.raises(subprocess.TimeoutExpired):
        _wait(worker, 0.05)
    worker.stdin.close()
    assert _wait(worker, 1e12) == 7


def test_a_worker_holds_the_turn_even_if_who_started_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "gettempdir", lambda: tmp_path)
    with _turn() as turn:
        worker = subprocess.Popen(NAP, stdin=subprocess.PIPE, pass_fds=[turn.fileno()])
    (lock,) = tmp_path.iterdir()
    with lock.open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        worker.stdin.close()
        worker.wait()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_another_machine_or_other_code_is_another_run(configure, monkeypatch):
    def mark():
        return fingerprint(configure(), {"strategy": "uva"}, 0)

    known = [mark()]
    assert mark() == known[0]
    for name, value in (("gpus", [{"name": "H200"}]), ("cpu_name", "another"), ("code_digest", "0" * 64)):
        monkeypatch.setattr(job, name, lambda value=value: value)
        known.append(mark())
    assert len(set(known)) == 4
