"""What the disk of a table's file can do at best: measured once on that file, and kept."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engram_exp.machine.disk import in_words
from engram_exp.machine.files import write_text
from engram_exp.machine.requests import OpenFile
from engram_exp.measure.peaks import require_rates
from engram_exp.measure.rates import Peaks
from engram_exp.measure.rates.disk import curves

log = logging.getLogger(__name__)

VERSION = 1


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
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"disk-{digest}.json"
    if not refresh and path.exists():
        try:
            peaks = json.loads(path.read_text(encoding="utf-8"))["peaks"]
            require_rates("peaks", peaks)
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be read (%r): what the disk can do is measured anew", path, error)
        else:
            return dict(peaks)
    announce(f"measuring what {identity['disk']} can do, once; it is kept in {path}")
    peaks = curves(file.path, file.size_bytes)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"disk": identity, "peaks": peaks}, indent=1))
    except OSError as error:
        log.warning("what the disk can do is not kept for the next run: %s (limits_dir=%s)", error, folder)
    return peaks
