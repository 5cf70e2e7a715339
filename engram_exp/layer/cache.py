"""Arrays that are slow to make and kept on disk, keyed by what they were made from."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)


def cached_array(folder: Path, key: str, build: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array stored under `key`, building and storing it first where there is none that can be read.

    The file carries checksums, so that a damaged one is noticed and built again. It is written under a temporary name
    and renamed: processes that build the same array at once do not disturb each other. A folder that is full or cannot
    be written costs a warning, not the run.
    """
    path = folder / f"{key}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["array"]
    except (FileNotFoundError, NotADirectoryError):
        pass
    except PermissionError as error:
        log.warning("%s cannot be read and will be built again (%s)", path, error)
    except Exception as error:  # a flipped bit can make the archive raise anything
        log.warning("%s is damaged and will be built again (%s)", path, error)
    array = build()
    temporary = folder / f".{key}.{os.getpid()}.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, array=array)
        os.replace(temporary, path)
    except OSError as error:
        log.warning("%s cannot be kept for the next run (%s)", path, error)
        with suppress(OSError):
            temporary.unlink()
    return array
