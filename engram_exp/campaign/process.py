"""Worker processes: starting one, waiting for its end, saying what ended it, and ending it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import NamedTuple, Protocol

from engram_exp.campaign.turn import Turn
from engram_exp.machine import cgroup, memory_group
from engram_exp.machine.environment import PROJECT
from engram_exp.machine.rendezvous import ONE, Node
from engram_exp.results.schema import HARMLESS
from engram_exp.run.job import Job
from engram_exp.run.worker import EXIT_UNWRITTEN
from engram_exp.vocabulary import CRASH, OOM_HOST, TIMEOUT

MOST_POLL_MS = 2**31 - 1
LOOK_EVERY_S = 1.0  # whether a run that others follow has left its rows: seldom enough to disturb nobody
NO_RESULTS = "the run left no results"


class Ending(NamedTuple):
    """What a run that left no results is to be called, and why."""

    status: str
    error: str


class Stopped(KeyboardInterrupt):
    """A signal that ends the program as Ctrl-C does, but under its own name.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}")


def stop_on(*signals: signal.Signals) -> None:
    """Let signals end the program in order: a batch system's end of time loses no finished run."""

    def stop(number: int, _: object) -> None:
        raise Stopped(number)

    for name in signals:
        if signal.getsignal(name) is not signal.SIG_IGN:  # as nohup leaves it
            signal.signal(name, stop)


def interruption(stopped: BaseException) -> Ending:
    """What a run is called that did not end by itself."""
    if isinstance(stopped, Stopped):
        return Ending(CRASH, str(stopped))
    by_hand = isinstance(stopped, KeyboardInterrupt)
    return Ending(CRASH, "interrupted by Ctrl-C" if by_hand else f"interrupted: {stopped!r}")


def exit_code(stopped: KeyboardInterrupt) -> int:
    """As a shell gives it: 128 and the number of the signal."""
    return 128 + (stopped.number if isinstance(stopped, Stopped) else signal.SIGINT)


class Listening(Protocol):
    """What is heard while a worker runs."""

    def fileno(self) -> int:
        """The descriptor that can be read when there is something to hear."""

    def hear(self) -> Ending | None:
        """What ended the run elsewhere; None: nothing that need end it here."""


class ElsewhereError(Exception):
    """A run that another node has ended.

    Args:
        ending: what it is to be called there.
    """

    def __init__(self, ending: Ending) -> None:
        self.ending = ending
        super().__init__(ending.error)


def measure_in_worker(
    jobs: Sequence[Job], turn: Turn | None, node: Node = ONE, others: Sequence[Listening] = ()
) -> Generator[Ending, None, None]:
    """Run jobs in a process that is theirs, until one fails; yields, as each ends, what the run is to be called if it
    left no results.

    Args:
        jobs: of the runs.
        turn: on this machine; None: another process has it.
        node: of which the worker is.
        others: nodes of the run, if it is one alone, which may end it.
    """
    folders, lock = [job.folder for job in jobs], [turn.fileno()] if turn else []
    command = [sys.executable, "-m", "engram_exp.run.worker", *(f"--turn={each}" for each in lock), *folders]
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, **node.variables(), "PYTHONPATH": path}
    oom_kills = cgroup.oom_kills()
    # In a process group of its own, so that Ctrl-C reaches this process alone, which then ends the whole group. It
    # holds the turn, too: should this process be killed, the next one still waits for the worker.
    worker = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=lock)
    try:
        if turn:
            turn.tell(worker.pid)
        for job, following in pairwise(jobs):
            statuses = _wait_for_rows(worker, job, following)
            if not statuses.issubset(HARMLESS) or worker.returncode is not None:
                break  # the worker ends with it
            yield Ending(CRASH, NO_RESULTS)
        else:
            job = jobs[-1]
        code = wait(worker, job.config.timeout_s, others)
        of_own_group = memory_group.oom_kills_of(worker.pid)
        yield describe_exit(code, cgroup.oom_kills() - oom_kills + of_own_group)
    except subprocess.TimeoutExpired:
        kill(worker)
        yield Ending(TIMEOUT, f"killed after timeout_s={job.config.timeout_s:g}")
    except ElsewhereError as told:
        kill(worker)
        yield told.ending
    except BaseException:
        kill(worker)
        raise


def _wait_for_rows(worker: subprocess.Popen[bytes], job: Job, following: Job) -> set[str]:
    """Statuses of the rows of a job that another follows, as soon as they are there or the worker has ended; none if it
    ended before, or if only the other's are found: those of the job are lost.

    Raises:
        TimeoutExpired: after the job's `timeout_s`.
    """
    until = time.monotonic() + job.config.timeout_s
    while worker.poll() is None and not (job.statuses() or following.statuses()):
        with suppress(subprocess.TimeoutExpired):
            wait(worker, LOOK_EVERY_S)
        if time.monotonic() > until:
            raise subprocess.TimeoutExpired(worker.args, job.config.timeout_s)
    return job.statuses()


def wait(worker: subprocess.Popen[bytes], timeout_s: float, others: Sequence[Listening] = ()) -> int:
    """The worker's exit code. Unlike `Popen.wait` with a timeout, this sleeps: polling would disturb the measurements.

    Raises:
        TimeoutExpired: after `timeout_s`.
        ElsewhereError: as one of the others says.
    """
    if worker.returncode is not None:  # its number may be another process's by now
        return int(worker.returncode)
    try:
        ended = os.pidfd_open(worker.pid)
    except OSError:  # a kernel before 5.3, or a sandbox: what happens elsewhere, ranks find out by their own patience
        return worker.wait(timeout=timeout_s)
    try:
        poll, heard = select.poll(), {other.fileno(): other for other in others}
        for descriptor in (ended, *heard):
            poll.register(descriptor, select.POLLIN)
        until = time.monotonic() + timeout_s
        while found := poll.poll(max(0, min(1e3 * (until - time.monotonic()), MOST_POLL_MS))):
            readable = [descriptor for descriptor, _ in found]
            if ended in readable:
                return worker.wait()
            for descriptor in readable:
                if ending := heard[descriptor].hear():
                    raise ElsewhereError(ending)
                poll.unregister(descriptor)
        raise subprocess.TimeoutExpired(worker.args, timeout_s)
    finally:
        os.close(ended)


def kill(worker: subprocess.Popen[bytes]) -> None:
    """End a worker and what it started in its process group."""
    if worker.returncode is not None:
        return
    with suppress(ProcessLookupError):  # it may have ended just now
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def describe_exit(code: int, oom_kills: int) -> Ending:
    """What ended a worker that left no results.

    Args:
        code: of its exit; negative: the signal that killed it.
        oom_kills: processes of its control group that the memory controller killed meanwhile.
    """
    if code == EXIT_UNWRITTEN:
        return Ending(CRASH, "the worker could not write its results; it says why above")
    if code >= 0:
        return Ending(CRASH, f"the worker exited with code {code} and left no results")
    killed = f"the worker was killed by {signal.Signals(-code).name}"
    if -code != signal.SIGKILL:
        return Ending(CRASH, killed)
    if oom_kills > 0:
        return Ending(OOM_HOST, f"{killed} of the memory controller: its control group had no memory left")
    return Ending(CRASH, f"{killed}, which the system sends when memory runs out")
