"""Waiting for one's turn on the machine."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from typing import NamedTuple

from engram_exp.machine.files import kept_from_children
from engram_exp.run.terminal import Terminal

MOST_TEXT_BYTES = 256


class Turn(NamedTuple):
    """A turn that has come.

    descriptor: of the lock file; the turn lasts as long as anybody has it open.
    before, own: which turn was the last one before, and which one this is.
    """

    descriptor: int
    before: str
    own: str

    def fileno(self) -> int:
        """The descriptor, as files have it."""
        return self.descriptor

    def tell(self, worker: int) -> None:
        """Let those who wait know the process that measures."""
        _write(self.descriptor, f"{self.own}\n{worker}")


@contextmanager
def turn() -> Iterator[Turn]:
    """Runs of one user on one machine wait for each other: beside another, neither would measure what it seems to. The
    turn ends when nobody has the file open any more: what this process forks does not."""
    descriptor = os.open(_lock(), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Terminal().say(f"waiting: another run measures on this machine{_holder(_read(descriptor))}")
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # sleeps: a process that polled would disturb the other's times
        before, own = _read(descriptor), f"{os.getpid()} {time.time_ns()}"
        _write(descriptor, own)
        with kept_from_children(descriptor):
            yield Turn(descriptor, before.partition("\n")[0], own)
    finally:
        os.close(descriptor)


def last_turn() -> str:
    """Which turn was the last one: whoever finds another one later was not alone meanwhile."""
    try:
        return _lock().read_text().partition("\n")[0]
    except (OSError, ValueError):
        return ""


def _lock() -> Path:
    return Path(gettempdir()) / f"engram_exp-{os.getuid()}.lock"


def _holder(text: str) -> str:
    first, _, worker = text.partition("\n")
    process = first.partition(" ")[0]
    if not process.isdecimal():  # it is just being written
        return ""
    return f" (process {process}, its worker {worker})" if worker.isdecimal() else f" (process {process})"


def _read(descriptor: int) -> str:
    return os.pread(descriptor, MOST_TEXT_BYTES, 0).decode(errors="replace")


def _write(descriptor: int, text: str) -> None:
    with suppress(OSError):  # a full disk keeps nobody from his turn
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
