"""What control groups (version 2 or 1) leave this process: in a container or a batch job, less than the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
UNLIMITED = "max"
LEAST_UNLIMITED_BYTES = 2**60  # version 1 has no word for it, but a number that no machine has


def free_bytes() -> int | None:
    """Memory that can still be allocated, in bytes; None where no group limits it."""
    return min(_free_bytes(), default=None)


def cpus() -> int | None:
    """CPUs' worth of time, at least 1; None where no group limits it."""
    return min((max(1, quota // period) for quota, period in _quotas()), default=None)


def oom_kills() -> int:
    """Processes of the process's own group that were killed because memory ran out; 0 where nobody counts them."""
    for name in ("memory.events", "memory.oom_control"):
        for _, text in _texts("memory", name):
            return int(_fields(text).get("oom_kill", 0))
    return 0


def oom_kills_in(folder: Path) -> int:
    """The same of a group of version 2.

    Raises:
        OSError: there is none.
    """
    return int(_fields((folder / "memory.events").read_text()).get("oom_kill", 0))


def _free_bytes() -> Iterator[int]:
    """Of every group that limits memory; cached files count as free: the kernel drops them when it needs the room."""
    for folder, limit in _texts("memory", "memory.max"):
        if limit != UNLIMITED:
            yield _left_bytes(folder, int(limit), "memory.current", "inactive_file")
    for folder, limit in _texts("memory", "memory.limit_in_bytes"):
        if int(limit) < LEAST_UNLIMITED_BYTES:
            yield _left_bytes(folder, int(limit), "memory.usage_in_bytes", "total_inactive_file")


def _left_bytes(folder: Path, limit: int, usage: str, reclaimable: str) -> int:
    used = int((folder / usage).read_text())
    return max(0, limit - used + int(_fields((folder / "memory.stat").read_text())[reclaimable]))


def _quotas() -> Iterator[tuple[int, int]]:
    """Microseconds of CPU time in a period, and the period, of every group that limits it."""
    for _, text in _texts("cpu", "cpu.max"):
        quota, period = text.split()
        if quota != UNLIMITED:
            yield int(quota), int(period)
    for folder, text in _texts("cpu", "cpu.cfs_quota_us"):
        if int(text) > 0:
            yield int(text), int((folder / "cpu.cfs_period_us").read_text())


def _fields(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines())


def _texts(controller: str, name: str) -> Iterator[tuple[Path, str]]:
    """A file of the process's own group and of those above it, where they have it."""
    for folder in _folders(controller):
        try:
            yield folder, (folder / name).read_text().strip()
        except OSError:  # the topmost group has no limits, a container does not see its path in version 1
            continue


def _folders(controller: str) -> Iterator[Path]:
    """The process's own group and those above it: of version 2, then of version 1, which has a tree a controller."""
    try:
        lines = [line.split(":", 2) for line in OWN.read_text().splitlines()]
    except OSError:
        return
    for version, top in ((2, ROOT), (1, ROOT / controller)):
        for _, controllers, group in (line for line in lines if len(line) == 3):
            if (controllers == "") if version == 2 else controller in controllers.split(","):
                own = PurePosixPath(group)
                is_outside = ".." in own.parts  # of what this process sees
                if not is_outside:
                    yield from (top / above.relative_to("/") for above in (own, *own.parents))
                elif version == 1:
                    yield top
