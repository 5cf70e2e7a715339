"""What control groups (version 2) leave this process: in a container or a batch job, less than the machine has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
UNLIMITED = "max"


def free_bytes() -> int | None:
    """Memory that can still be allocated, in bytes; None where no group limits it."""
    return min(_free_bytes(), default=None)


def cpus() -> int | None:
    """CPUs' worth of time, at least 1; None where no group limits it."""
    quotas = (text.split() for _, text in _texts("cpu.max"))
    return min((max(1, int(quota) // int(period)) for quota, period in quotas if quota != UNLIMITED), default=None)


def _free_bytes() -> Iterator[int]:
    for folder, limit in _texts("memory.max"):
        if limit != UNLIMITED:
            used = int((folder / "memory.current").read_text())
            usage = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            reclaimable = int(usage["inactive_file"])  # cached files, which the kernel drops when it needs the room
            yield max(0, int(limit) - used + reclaimable)


def _texts(name: str) -> Iterator[tuple[Path, str]]:
    """A file of the process's own group and of those above it, where they have it."""
    for folder in _folders():
        try:
            yield folder, (folder / name).read_text().strip()
        except OSError:  # the topmost group has no limits
            continue


def _folders() -> list[Path]:
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None or ".." in Path(own).parts:  # version 1, or a group outside of the namespace
        return []
    folder = ROOT / own
    return [folder, *(above for above in folder.parents if above.is_relative_to(ROOT))]
