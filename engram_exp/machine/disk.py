"""The disk that a file lies on: what it is, what is free on it, and what this process has read of any."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

OWN_IO = Path("/proc/self/io")
MOUNTS = Path("/proc/self/mountinfo")
DEVICES = Path("/sys/dev/block")
IN_MEMORY = ("tmpfs", "ramfs")


def read_bytes() -> int | None:
    """Bytes that this process has had read from disks since it began (proc_pid_io(5)); None where the kernel does not
    count them."""
    with suppress(OSError, KeyError, ValueError):
        lines = OWN_IO.read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["read_bytes"])
    return None


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write below a folder that is there."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def file_system(path: Path) -> tuple[str, str]:
    """The type of the file system that a path lies on, and the name of its device; empty where they are not told.

    The mount with the longest path above it is the one (proc_pid_mountinfo(5)).
    """
    found, longest = ("", ""), -1
    resolved = path.resolve()
    with suppress(OSError):
        for line in MOUNTS.read_text().splitlines():
            mount, _, behind = line.partition(" - ")
            point, (kind, source, *_) = Path(mount.split()[4].replace("\\040", " ")), behind.split()
            if resolved.is_relative_to(point) and len(point.parts) >= longest:
                found, longest = (kind, source), len(point.parts)
    return found


def in_words(path: Path) -> str:
    """The file system and the disk that a path lies on: `ext4 on /dev/nvme0n1 (Samsung SSD 990 PRO)`."""
    kind, source = file_system(path)
    model = ""
    with suppress(OSError):
        device = os.stat(path).st_dev
        folder = (DEVICES / f"{os.major(device)}:{os.minor(device)}").resolve()
        for above in (folder, folder.parent):  # a partition's disk is above it
            with suppress(OSError):
                model = (above / "device" / "model").read_text().strip()
                break
    return f"{kind} on {source}" + (f" ({model})" if model else "")
