"""Other processes are busy as long as samples are taken, and no longer."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from common import ROOT

from engram_exp.measure.host_load import host_load

CPUS = os.sched_getaffinity(0)
PATIENCE_S = 60
KILLED = """
import os, sys, time
from engram_exp.measure.host_load import host_load
with host_load(2, os.sched_getaffinity(0)) as processes:
    print(*processes, flush=True)
    time.sleep(60)
"""


def until(holds):
    """Wait for something that takes a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def is_over(pid: int) -> bool:
    """Whether a process runs no more; where nobody reaps it, its name is left."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def used_s(pid: int) -> float:
    return psutil.Process(pid).cpu_times().user


def test_as_many_processes_as_were_asked_for_use_cpu_time_until_they_are_left():
    with host_load(2, CPUS) as processes:
        assert len(set(processes)) == 2
        for pid in processes:
            assert set(psutil.Process(pid).cpu_affinity()) == CPUS
            before_s = used_s(pid)
            until(lambda pid=pid, before_s=before_s: used_s(pid) > before_s)
    assert not any(map(psutil.pid_exists, processes)), "ended, and reaped"


def test_without_a_load_no_process_is_started():
    before = psutil.Process().children()
    with host_load(0, CPUS) as processes:
        assert psutil.Process().children() == before
    assert processes == []


def test_the_load_ends_with_an_error_too():
    with pytest.raises(ValueError, match="lost"), host_load(1, CPUS) as processes:
        raise ValueError("lost")
    assert not psutil.pid_exists(processes[0])


def test_the_load_outlives_no_process_that_was_killed():
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command, variables = [sys.executable, "-c", KILLED], {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=variables, start_new_session=True) as parent:
        processes = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(processes) == 2
        assert not any(map(is_over, processes))
        parent.send_signal(signal.SIGKILL)  # it alone, not its group
    until(lambda: all(map(is_over, processes)))


def test_a_load_that_ended_early_is_an_error():
    def lose_one(processes):
        os.kill(processes[1], signal.SIGKILL)
        until(lambda: is_over(processes[1]))

    with pytest.raises(RuntimeError, match=r"^1 of 2 processes of host_load ended"), host_load(2, CPUS) as processes:
        lose_one(processes)
    assert not any(map(psutil.pid_exists, processes))


def test_a_load_that_cannot_start_is_an_error(capfd):
    with pytest.raises(RuntimeError, match="did not start"), host_load(1, {100_000}):
        pytest.fail("nothing is timed without it")
    assert "Invalid argument" in capfd.readouterr().err, "the reason"
