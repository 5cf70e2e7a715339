"""Where numba keeps compiled code: checked before it is used, since numba runs whatever it finds there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile, gettempdir

from engram_exp.machine.files import write_text

log = logging.getLogger(__name__)

DIGESTS = "sha256.json"  # of the files that a worker left which ended by itself
SUFFIXES = (".nbi", ".nbc")  # of numba's index and data files
ROOM_BYTES = 2**24  # more than all of the package's compiled code
MEMORY_DISK = "/dev/shm"


@contextmanager
def compiled_code(folder: Path) -> Iterator[Path]:
    """Yields a folder that compiled code can be read from and written to, without anything in it that is damaged.

    Where `folder` is full or cannot be written, it is a temporary one, with a warning: the code is compiled again. What
    no worker has vouched for is deleted, and so is all of it, with a warning, if a file is not what its worker left.
    """
    reason = _why_not(folder)
    if reason is None:
        _drop_damaged(folder)
        yield folder
        _vouch(folder)
        return
    log.warning("%s cannot be used, code is compiled again for this run: %s", folder, reason)
    place = next((place for place in (gettempdir(), MEMORY_DISK) if _why_not(Path(place)) is None), None)
    if place is None:
        yield folder
        return
    with TemporaryDirectory(dir=place, prefix="engram_exp-compiled-") as temporary:
        yield Path(temporary)


def _why_not(folder: Path) -> OSError | None:
    """What keeps compiled code from being written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as probe:
            os.posix_fallocate(probe.fileno(), 0, ROOM_BYTES)
    except OSError as error:
        return error
    return None


def _drop_damaged(folder: Path) -> None:
    left, found = _vouched_for(folder), _digests(folder)
    damaged = [name for name in left if found.get(name) != left[name]]
    if damaged:
        log.warning("the compiled code in %s is damaged (%s); it is deleted and built again", folder, damaged[0])
        left = {}
    for name in found.keys() - left.keys():
        with suppress(OSError):
            (folder / name).unlink()


def _vouch(folder: Path) -> None:
    try:
        found = _digests(folder)
        if found != _vouched_for(folder):
            write_text(folder / DIGESTS, json.dumps(found, indent=1))
    except OSError as error:
        log.warning("the compiled code in %s will be built again by the next run: %s", folder, error)


def _vouched_for(folder: Path) -> dict[str, str]:
    try:
        return dict(json.loads((folder / DIGESTS).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES)
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
