"""What the disk of a table's file can do at best: measured once on that file, and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from engram_exp.machine.disk import in_words
from engram_exp.machine.requests import OpenFile
from engram_exp.measure import kept
from engram_exp.measure.rates import Peaks
from engram_exp.measure.rates.disk import curves
from engram_exp.vocabulary import DISK

VERSION = 1
THE_DISK = "the disk"


def disk_peaks(
    folder: Path, file: OpenFile, machine: dict[str, Any], *, refresh: bool, announce: Callable[[str], None]
) -> Peaks:
    """The curves of a disk for files of one size: read from where they are kept, or measured and written there. A file
    of them that is damaged is replaced; one that cannot be written costs a warning.

    Args:
        folder: of the files of limits.
        file: of a table.
        machine: that the disk is of.
        refresh: measure even if there is a file.
        announce: called with a line before measuring.
    """
    identity = {"version": VERSION, "disk": in_words(Path(file.path)), "size_bytes": file.size_bytes, **machine}
    path = kept.file_of(folder, DISK, identity)
    found = None if refresh else kept.read(path, THE_DISK)
    if found is not None:
        return dict(found["peaks"])
    announce(f"measuring what {identity['disk']} can do, once; it is kept in {path}")
    peaks = curves(file.path, file.size_bytes)
    kept.write(path, THE_DISK, {"disk": identity, "peaks": peaks})
    return peaks
