"""What of a file lies in the host's page cache, and how it is put there or dropped."""

from __future__ import annotations

import ctypes
import mmap
import os
from contextlib import suppress

import numpy as np

from engram_exp.machine.native_calls import LIBC

READ_BYTES = 2**23  # at a time
POPULATE_READ = 22  # advice, from Linux 5.14 on; Python's mmap does not name it
LIBC.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
LIBC.mmap.restype = ctypes.c_void_p
LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def drop(descriptor: int) -> None:
    """Drop the pages of a file that nobody has written to since it was synchronised, nor has mapped."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def load(descriptor: int) -> None:
    """Read all of a file, so that its pages are there as long as nobody needs their memory more."""
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    buffer, offset = bytearray(READ_BYTES), 0
    while got := os.preadv(descriptor, [buffer], offset):
        offset += got
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_NORMAL)


def map_pages(mapped: mmap.mmap) -> None:
    """Map all pages of a mapped file, so that whoever touches one does not wait until the kernel has. A kernel that is
    too old for that maps each when it is touched."""
    with suppress(OSError):
        mapped.madvise(POPULATE_READ)


def resident_share(descriptor: int) -> float | None:
    """Share of a file's pages that are in memory (mincore(2)); None of an empty file, or where the kernel does not
    tell. It tells nobody of a file that he could not write to."""
    size = os.fstat(descriptor).st_size
    if not size:
        return None
    address = LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    try:
        pages = np.zeros(-(-size // mmap.PAGESIZE), dtype=np.uint8)
        failed = LIBC.mincore(address, size, pages.ctypes.data)
        return None if failed else float((pages & 1).mean())
    finally:
        LIBC.munmap(address, size)
