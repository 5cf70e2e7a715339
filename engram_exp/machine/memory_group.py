"""A memory group for this process (cgroups, version 2): less memory, its page cache among it, than the machine has.

A group that holds processes can have no limited groups below it, so that the new one stands beside the process's own.
"""

from __future__ import annotations

import atexit
import logging
import os
from contextlib import suppress
from pathlib import Path

from engram_exp.errors import SkippedError
from engram_exp.machine import cgroup

log = logging.getLogger(__name__)

KEY = "memory_limit_gb"
CONTROLLER = "memory"
PREFIX = "engram-exp-"
PROCESSES = "cgroup.procs"


def join(limit_bytes: int) -> Path:
    """Make a group that has so much memory, and move this process there until it ends. What it has allocated before
    stays with its own group. Groups of processes that have ended without removing theirs are removed.

    Returns:
        the group's folder.

    Raises:
        SkippedError: no such group can be made here.
    """
    own = _own_group()
    group = own.parent / f"{PREFIX}{os.getpid()}"
    for left_over in own.parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # it holds a process
            left_over.rmdir()
    try:
        if CONTROLLER not in (own.parent / "cgroup.subtree_control").read_text().split():
            (own.parent / "cgroup.subtree_control").write_text(f"+{CONTROLLER}")
        group.mkdir()
        (group / "memory.max").write_text(str(limit_bytes))
        if (group / "memory.swap.max").exists():  # what does not fit shall not go there instead
            (group / "memory.swap.max").write_text("0")
        (group / PROCESSES).write_text(str(os.getpid()))
    except OSError as error:
        _leave(own, group)
        raise _cannot(f"{group}: {error.strerror}", limit_bytes) from error
    log.info("%.3g GB of memory for this run, in %s", limit_bytes / 1e9, group)
    atexit.register(_leave, own, group)
    return group


def oom_kills_of(pid: int) -> int:
    """Processes of the group that a process had made that were killed because its memory ran out; 0 without such a
    group. One that was killed has left it behind: it is removed."""
    found = 0
    with suppress(OSError, SkippedError):
        group = _own_group().parent / f"{PREFIX}{pid}"
        found = cgroup.oom_kills_in(group)
        group.rmdir()
    return found


def _own_group() -> Path:
    """The folder of the process's own group, where memory can be limited.

    Raises:
        SkippedError: it cannot.
    """
    with suppress(OSError):
        names = (cgroup.ROOT / "cgroup.controllers").read_text().split()
        paths = [line.removeprefix("0::") for line in cgroup.OWN.read_text().splitlines() if line.startswith("0::")]
        if CONTROLLER in names and paths and paths[0] != "/":
            return cgroup.ROOT / paths[0].lstrip("/")
        if CONTROLLER in names and paths:
            raise SkippedError(f"{KEY}: this process is in the topmost group, beside which no other can stand")
    raise SkippedError(f"{KEY}: this machine does not limit memory by groups of version 2 below {cgroup.ROOT}")


def _cannot(why: str, limit_bytes: int) -> SkippedError:
    wanted = f"systemd-run --user --scope -p MemoryMax={limit_bytes} python run.py ..."
    return SkippedError(f"{KEY}: no memory group can be made ({why}); where systemd is, `{wanted}` makes one")


def _leave(own: Path, group: Path) -> None:
    """Go back, and remove the group."""
    with suppress(OSError):
        (own / PROCESSES).write_text(str(os.getpid()))
    with suppress(OSError):
        group.rmdir()
