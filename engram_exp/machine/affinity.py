"""The CPUs that this process may use. PyTorch's and numba's OpenMP may tie the thread that imports them to one of these
(`hardware.pin_threads`): whoever asks the system then, learns of that one."""

from __future__ import annotations

import os
from collections.abc import Collection

_given: set[int] = set()


def give(cpus: Collection[int] | None) -> None:
    """Let this process use some CPUs, or none but those that it has, and remember them. Before libraries are imported.

    Args:
        cpus: that it may use; None: as before.
    """
    if cpus:
        os.sched_setaffinity(0, cpus)
    _given.clear()
    _given.update(os.sched_getaffinity(0))


def own_cpus() -> set[int]:
    """Those that this process was given; if it was given none, those that this thread may run on."""
    return set(_given) or os.sched_getaffinity(0)
