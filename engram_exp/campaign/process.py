"""Worker processes: waiting for one's turn on the machine, for a worker's end, and ending it."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from typing import IO

from engram_exp.run.terminal import Terminal

MOST_POLL_MS = 2**31 - 1


@contextmanager
def turn() -> Iterator[IO[str]]:
    """Runs of one user on one machine wait for each other: beside another, neither would measure what it seems to. The
    turn ends when nobody has the file open any more."""
    with (Path(gettempdir()) / f"engram_exp-{os.getuid()}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Terminal().say("waiting: another run measures on this machine")
            fcntl.flock(lock, fcntl.LOCK_EX)  # sleeps: a process that polled would disturb the other's times
        yield lock


def wait(worker: subprocess.Popen[bytes], timeout_s: float) -> int:
    """The worker's exit code. Unlike `Popen.wait` with a timeout, this sleeps: polling would disturb the measurements.

    Raises:
        TimeoutExpired: after `timeout_s`.
    """
    try:
        ended = os.pidfd_open(worker.pid)
    except OSError:  # a kernel before 5.3, or a sandbox
        return worker.wait(timeout=timeout_s)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        if not poll.poll(min(1e3 * timeout_s, MOST_POLL_MS)):
            raise subprocess.TimeoutExpired(worker.args, timeout_s)
    finally:
        os.close(ended)
    return worker.wait()


def kill(worker: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):  # it may have ended just now
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def describe_exit(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", which the system sends when memory runs out" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{hint}"
    return f"the worker exited with code {code} and left no results"
