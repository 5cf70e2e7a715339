"""Files that are whole or not there, what is in them, and descriptors that stay with their process."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

READ_BYTES = 2**30  # of a folder's content, at most; what lies beyond is known by size and time of its last change
CHUNK_BYTES = 2**20

_kept: set[int] = set()


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that half a file never counts, nor stays where writing
    fails.

    Raises:
        OSError: the disk is full, or the folder is gone or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files of a folder but hidden ones, in hexadecimal digits.

    Each is read once per process, unless its size or the time of its last change differ. Of more than 1 GiB, the rest
    is known by these two. What cannot be read, or is not there, is known as that.
    """
    digest, left = hashlib.sha256(), READ_BYTES
    for file in _files_of(path):
        digest.update(f"{file.relative_to(path)}\0".encode(errors="surrogateescape"))
        try:
            known = file.stat()
            state = file, known.st_mtime_ns, known.st_size
            left -= known.st_size
            digest.update((_digest_of(*state) if left >= 0 else str(state[1:])).encode())
        except (OSError, ValueError) as error:
            digest.update(type(error).__name__.encode())
    return digest.hexdigest()


def _files_of(path: Path) -> list[Path]:
    if not os.path.isdir(path):  # unlike Path's, it never raises
        return [path]
    found = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))


@cache
def _digest_of(file: Path, changed_ns: int, size_bytes: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def kept_from_children(descriptor: int) -> Iterator[None]:
    """Close a descriptor in every process that this one forks or executes: a lock ends with its owner, not with what
    that leaves behind."""
    os.set_inheritable(descriptor, False)
    _kept.add(descriptor)
    try:
        yield
    finally:
        _kept.discard(descriptor)


def _close_kept() -> None:
    for descriptor in _kept:
        with suppress(OSError):
            os.close(descriptor)
    _kept.clear()


os.register_at_fork(after_in_child=_close_kept)
