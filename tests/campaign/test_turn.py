"""One run at a time on a machine: whoever waits is told for whom, and what a run leaves behind keeps nobody waiting."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from common import ROOT

from engram_exp import load_results
from engram_exp.campaign.preflight import _check_writable
from engram_exp.campaign.turn import last_turn, turn

WAIT = [sys.executable, "-c", "from engram_exp.campaign.turn import turn\nwith turn(): print('mine', flush=True)"]


@pytest.fixture
def own_lock(tmp_path, monkeypatch):
    monkeypatch.setattr("engram_exp.campaign.turn.gettempdir", lambda: tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def waiter():
    return subprocess.Popen(WAIT, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("worker", "says"), [(None, ""), (4711, ", its worker 4711")])
def test_who_waits_is_told_for_whom(own_lock, worker, says):
    with turn() as held:
        if worker:
            held.tell(worker)
        other = waiter()
        line = other.stdout.readline()
    assert line == f"waiting: another run measures on this machine (process {os.getpid()}{says})\n"
    assert other.communicate(timeout=60)[0] == "mine\n"


@pytest.mark.parametrize("text", ["", "half\0", "12x 3"])
def test_what_cannot_be_read_is_not_said(own_lock, tmp_path, text):
    with turn() as held:
        os.ftruncate(held.descriptor, 0)
        os.pwrite(held.descriptor, text.encode(), 0)
        other = waiter()
        assert other.stdout.readline() == "waiting: another run measures on this machine\n"
    other.communicate(timeout=60)


def test_it_shows_whether_another_process_had_a_turn_between(own_lock):
    with turn() as first:
        first.tell(4711)
        assert last_turn() == first.own
    with turn() as second:
        assert second.before == first.own
    assert waiter().wait(60) == 0
    with turn() as third:
        assert third.before not in (first.own, second.own)


LEAVES_CHILDREN = """
import os, subprocess, time
from engram_exp.steps.hashing.numpy import NumpyHasher


class Hasher(NumpyHasher):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        subprocess.Popen(["sleep", "600"], close_fds=False, start_new_session=True)
        if not os.fork():
            os.setsid()
            time.sleep(600)
            os._exit(0)
"""


@pytest.fixture
def leaving(tmp_path, own_lock):
    """The arguments and variables of a run whose component leaves two processes behind, which are ended later."""
    (tmp_path / "leaving.py").write_text(LEAVES_CHILDREN)
    yield ["cases=[hashing]", "hashing._target_=leaving.Hasher", "~hashing.threads"], {"PYTHONPATH": str(tmp_path)}
    for process in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            with open(f"/proc/{process}/environ", "rb") as variables:
                if f"TMPDIR={tmp_path}".encode() in variables.read().split(b"\0"):
                    os.kill(process, signal.SIGKILL)
        except OSError:
            continue


@pytest.mark.slow
def test_children_that_a_component_leaves_do_not_hold_the_turn(command, leaving):
    arguments, variables = leaving
    environment = {**os.environ, **variables}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}  # which the children keep open
    assert subprocess.run(command(*arguments), cwd=ROOT, env=environment, **quiet, timeout=250).returncode == 0
    other = waiter()
    assert other.stdout.readline() == "mine\n"
    other.communicate(timeout=60)


def test_calls_that_look_at_one_folder_at_once_do_not_refuse_each_other(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(_check_writable, [tmp_path] * 1000))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_calls_on_one_campaign_share_the_work(command, own_lock, tmp_path):
    """The first one stops the second one's way until both have planned everything."""
    sweep = command("-m", "batch_size=1,2,3", "cases=[hashing]", "worker=inline", "campaign=mine")
    with turn():
        calls = [subprocess.Popen(sweep, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        said = [[], []]
        for lines, process in zip(said, calls, strict=True):
            for line in iter(process.stdout.readline, ""):
                lines.append(line)
                if "waiting: " in line:
                    break
    for lines, process in zip(said, calls, strict=True):
        lines.append(process.communicate(timeout=250)[0])
        assert process.returncode == 0
        assert "3 runs: about" in "".join(lines), "both had everything to do"
    frame = load_results(tmp_path)
    assert sorted(frame["batch_size"]) == [1, 2, 3]
    assert set(frame["status"]) == {"ok"}
    assert "".join(map("".join, said)).count("another call of the program has done it meanwhile") == 3
    assert not re.search(r"mine/\d-2", "".join(map("".join, said)))
