"""How the program waits: for a worker, and for its turn on the machine."""

import fcntl
import subprocess
import sys

import pytest

from engram_exp.campaign import turn as turns
from engram_exp.campaign.process import wait
from engram_exp.campaign.turn import turn
from engram_exp.run import fingerprint as fingerprints
from engram_exp.run.fingerprint import fingerprint

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
        wait(worker, 0.05)
    worker.stdin.close()
    assert wait(worker, 1e12) == 7


def test_a_worker_holds_the_turn_even_if_who_started_it_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "gettempdir", lambda: tmp_path)
    with turn() as held:
        worker = subprocess.Popen(NAP, stdin=subprocess.PIPE, pass_fds=[held.fileno()])
    (lock,) = tmp_path.iterdir()
    with lock.open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        worker.stdin.close()
        worker.wait()
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.slow
def test_another_machine_or_other_code_is_another_run(configure, monkeypatch):
    def mark():
        return fingerprint(configure(), {"strategy": "uva"}, 0)

    known = [mark()]
    assert mark() == known[0]
    for name, value in (
        ("gpus", [{"name": "H200"}]),
        ("machine", {**fingerprints.machine(), "cpu_name": "another"}),
        ("machine", {**fingerprints.machine(), "torch_version": "another"}),
        ("code_digest", "0" * 64),
    ):
        monkeypatch.setattr(fingerprints, name, lambda value=value: value)
        known.append(mark())
    assert len(set(known)) == 5


@pytest.mark.slow
def test_a_machine_of_another_name_may_go_on_with_a_campaign(configure, monkeypatch):
    marks = set()
    for host in ("node-1", "node-2"):
        monkeypatch.setattr(fingerprints, "machine", lambda host=host: {"cpu_name": "EPYC", "host": host})
        marks.add(fingerprint(configure(), {}, 0))
    assert len(marks) == 1


def test_another_repetition_or_choice_is_another_run(configure):
    config = configure()
    marks = [fingerprint(config, {"strategy": strategy}, repeat) for strategy in ("uva", "mine") for repeat in (0, 1)]
    assert len(set(marks)) == 4
