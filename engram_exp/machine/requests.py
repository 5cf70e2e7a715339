"""Requests to read a file, many at a time: by threads that wait for one each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numba import njit

from engram_exp.errors import ConfigError
from engram_exp.machine.native_calls import PREAD, call

OFFSET, LENGTH, PLACE = 0, 1, 2  # columns of requests int64 [N, 3]: bytes of the file, and where they go in memory


class OpenFile:
    """A file that requests are made to.

    Args:
        path: of the file.
        size_bytes: that it must have.
        direct: past the page cache (O_DIRECT), in whole blocks.
        unit: bytes that offsets, lengths and places are multiples of: a block, or 1.

    Raises:
        ConfigError: it cannot be opened, has another size, or its file system does not read past the page cache.
    """

    def __init__(self, path: str, size_bytes: int, *, direct: bool = False, unit: int = 1) -> None:
        self.path, self.size_bytes, self.unit = path, size_bytes, unit
        try:
            self.descriptor = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        except OSError as error:
            how = "its file system refuses O_DIRECT; lookup=pread and lookup=mmap do without" if direct else ""
            raise ConfigError("table.path", path, f"cannot be opened ({error.strerror}){how and ': '}{how}") from error
        if os.fstat(self.descriptor).st_size != size_bytes:
            raise self._changed()

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)

    def finish(self, memory: np.ndarray, request: Sequence[int], done: int) -> None:
        """Read what a request still lacks, plainly: what went wrong raises what it was.

        Args:
            memory: uint8 [...], that places are counted in.
            request: offset, length and place.
            done: bytes of it that are there.

        Raises:
            OSError: of reading.
            ConfigError: the file has become shorter.
        """
        offset, length, place = map(int, request)
        done -= done % self.unit
        while done < min(length, self.size_bytes - offset):
            got = os.preadv(self.descriptor, [memory[place + done : place + length].data], offset + done)
            got -= got % self.unit if offset + done + got < self.size_bytes else 0
            if got <= 0:
                raise self._changed()
            done += got

    def _changed(self) -> ConfigError:
        found = os.fstat(self.descriptor).st_size
        remedy = f"has {found:,} bytes, and had {self.size_bytes:,} when it was checked; delete it to have it made anew"
        return ConfigError("table.path", self.path, remedy)


class Readers:
    """Threads that read a file, each waiting for one request at a time: so many are under way.

    Args:
        file: that they read.
        threads: at most.
        pread: the address of a function like pread(2).

    Raises:
        ConfigError: threads are tied to cores, and these would share one.
    """

    def __init__(self, file: OpenFile, threads: int, pread: int = PREAD) -> None:
        if os.environ.get("OMP_PROC_BIND") and (os.cpu_count() or 1) > len(os.sched_getaffinity(0)) == 1:
            remedy = "ties the threads that read to the core of the first; false, or lookup=io_uring, would work"
            raise ConfigError("hardware.pin_threads", True, remedy)
        self.file, self.threads, self.pread = file, threads, pread

    def read(self, requests: np.ndarray, memory: np.ndarray) -> None:
        """Read all requests int64 [N, 3] into memory uint8 [...].

        Raises:
            OSError: of reading.
            ConfigError: the file has become shorter.
        """
        threads = max(1, min(self.threads, len(requests)))
        edges = [len(requests) * number // threads for number in range(threads + 1)]
        done = np.zeros(len(requests), dtype=np.int64)
        others = [
            _pool(self.threads).submit(self._read, requests, memory, done, *edges[number : number + 2])
            for number in range(1, threads)
        ]
        try:
            self._read(requests, memory, done, *edges[:2])
        finally:
            errors = [error for other in others if (error := other.exception())]
        for error in errors:
            raise error

    def _read(self, requests: np.ndarray, memory: np.ndarray, done: np.ndarray, first: int, end: int) -> None:
        file = self.file
        while first < end:
            told = file.descriptor, file.size_bytes, file.unit
            first = _read_some(self.pread, *told, memory.ctypes.data, requests, done, first, end)
            if first < end:  # interrupted, or worse
                file.finish(memory, requests[first], done[first])
                first += 1


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """One for all who read with so many: they take turns."""
    return ThreadPoolExecutor(threads, thread_name_prefix="reader")


@njit(nogil=True, cache=True, error_model="numpy")
def _read_some(
    pread: Any, descriptor: Any, size: Any, unit: Any, memory: Any, requests: Any, done: Any, first: Any, end: Any
) -> Any:
    """Read requests one after the other; the number of the first that could not be read to its end."""
    for index in range(first, end):
        offset, length, place = requests[index]
        while done[index] < min(length, size - offset):
            at = done[index]
            got = call(pread, (descriptor, memory + place + at, length - at, offset + at))
            if offset + at + got < size:
                got -= got % unit
            if got <= 0:
                return index
            done[index] += got
    return end
