"""CPUs that are busy while a run is timed, as those of a server are whose engine schedules and tokenizes meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

# Counts in Python, as an engine's scheduler mostly interprets Python: in the core's own caches, without memory traffic.
# A look at its parent every hundredth of a second or so ends it, even if that was killed or never saw it start.
BUSY = """
import os, sys
os.sched_setaffinity(0, map(int, sys.argv[2:]))
print("busy", flush=True)
while os.getppid() == int(sys.argv[1]):
    for number in range(500_000):
        pass
"""


@contextmanager
def host_load(processes: int, cpus: Collection[int]) -> Iterator[list[int]]:
    """Keep so many other processes busy, from entering until leaving; they share no lock of Python with this one.

    Args:
        processes: that are never idle; 0: none is started.
        cpus: on which the kernel may place them, whatever this thread is tied to.

    Returns:
        Their ids.

    Raises:
        RuntimeError: one of them did not start, or ended before it was told to.
    """
    command = [sys.executable, "-I", "-S", "-c", BUSY, *map(str, (os.getpid(), *cpus))]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(processes):
            started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE))
        for process in started:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"a process of host_load did not start on the CPUs {sorted(cpus)}")
        yield [process.pid for process in started]
        ended = [process.pid for process in started if process.poll() is not None]
        if ended:
            raise RuntimeError(f"{len(ended)} of {processes} processes of host_load ended while the run was timed")
    finally:
        for process in started:
            process.kill()
        for process in started:
            with process:  # reaps it, and closes what it wrote to
                pass
