"""io_uring (io_uring(7)): requests to read go to the kernel, and their ends come back, through memory that both see.

A binding of what reading takes and no more: `liburing` for Python makes an object of every request, which costs
microseconds each, while these loops are compiled and take tens of nanoseconds.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
from typing import Any

import numpy as np
from numba import njit

from engram_exp.errors import SkippedError
from engram_exp.machine.native_calls import LIBC, SYSCALL, call, fence
from engram_exp.machine.requests import OpenFile

log = logging.getLogger(__name__)

SETUP, ENTER, REGISTER = 425, 426, 427  # numbers of the system calls, the same on all of today's machines
SQES_AT = 0x10000000  # where the kernel maps requests
SINGLE_MMAP = 1  # a feature of the kernel, from 5.4 on
REGISTER_BUFFERS = 0
GET_EVENTS = 1
READ_FIXED, READ = 4, 22  # into registered memory, or any
SQE_WORDS, CQE_WORDS = 8, 2  # of 64 bits
SQ_HEAD, SQ_TAIL, SQ_MASK, SQ_ARRAY, CQ_HEAD, CQ_TAIL, CQ_MASK, CQES = range(8)
WHERE = (10, 11, 12, 16, 20, 21, 22, 25)  # of these eight, words of 32 bits among the parameters
NEXT, IN_FLIGHT, FINISHED, UNSENT, AGAIN = range(5)  # of the state of a loop
REASONS = {
    errno.ENOSYS: "this kernel has none",
    errno.EPERM: "the kernel refuses it: kernel.io_uring_disabled, or the filter of a container",
}


class Ring:
    """A ring, and a file that is read through it.

    Args:
        file: that it reads.
        depth: requests under way at a time.
        memory: that they are read into, uint8 [...]; registered with the kernel, where that allows it.
        syscall: the address of a function like syscall(2).

    Raises:
        SkippedError: the kernel has no io_uring for this process.
    """

    def __init__(self, file: OpenFile, depth: int, memory: np.ndarray, syscall: int = SYSCALL) -> None:
        self.file, self.depth, self.memory, self.syscall = file, depth, memory, syscall
        entries = 1 << max(0, depth - 1).bit_length()
        told = np.zeros(30, dtype=np.uint32)  # struct io_uring_params
        self.descriptor = LIBC.syscall(SETUP, entries, ctypes.c_void_p(told.ctypes.data))
        if self.descriptor < 0:
            number = ctypes.get_errno()
            raise SkippedError(f"no io_uring: {REASONS.get(number, os.strerror(number))}; lookup=direct does without")
        if not int(told[5]) & SINGLE_MMAP:
            raise SkippedError("no io_uring: this kernel is older than 5.4; lookup=direct does without")
        sq_entries, cq_entries = int(told[0]), int(told[1])
        at = [int(told[word]) for word in WHERE]
        size = max(at[SQ_ARRAY] + 4 * sq_entries, at[CQES] + 8 * CQE_WORDS * cq_entries)
        self.maps = mmap.mmap(self.descriptor, size), mmap.mmap(self.descriptor, 64 * sq_entries, offset=SQES_AT)
        self.words = np.frombuffer(self.maps[0], dtype=np.uint32, count=size // 4)
        self.at = np.array([offset // 4 for offset in at], dtype=np.int64)
        self.cqes = np.frombuffer(self.maps[0], np.int64, CQE_WORDS * cq_entries, at[CQES]).reshape(-1, CQE_WORDS)
        self.sqes = np.frombuffer(self.maps[1], dtype=np.int64).reshape(-1, SQE_WORDS)
        self.sqes[:] = 0
        self.words[self.at[SQ_ARRAY] :][:sq_entries] = np.arange(sq_entries)
        self.operation = READ_FIXED if self._register() else READ

    def __del__(self) -> None:
        if getattr(self, "descriptor", -1) >= 0:
            os.close(self.descriptor)

    def read(self, requests: np.ndarray) -> None:
        """Read all requests int64 [N, 3] into the ring's memory.

        Raises:
            OSError: of reading.
            ConfigError: the file has become shorter.
        """
        file, count = self.file, len(requests)
        state, done, again = np.zeros(5, np.int64), np.zeros(count, np.int64), np.empty(count, np.int64)
        told = file.descriptor, file.size_bytes, file.unit, self.operation, self.memory.ctypes.data, self.depth
        ring = self.descriptor, self.words, self.at, self.sqes, self.cqes
        while not _run(self.syscall, *ring, *told, requests, done, again, state):
            self._enter(state)
        wanted = np.minimum(requests[:, 1], file.size_bytes - requests[:, 0])
        for index in np.flatnonzero(done < wanted):  # refused: read plainly, they say why
            file.finish(self.memory, requests[index], int(done[index]))

    def _register(self) -> bool:
        """Let the kernel keep hold of the memory, which spares each request doing so."""
        iovec = np.array([self.memory.ctypes.data, self.memory.nbytes], dtype=np.int64)
        told = REGISTER_BUFFERS, ctypes.c_void_p(iovec.ctypes.data), 1
        if LIBC.syscall(REGISTER, self.descriptor, *told) == 0:
            return True
        log.info("the kernel does not register the buffer of io_uring (%s)", os.strerror(ctypes.get_errno()))
        return False

    def _enter(self, state: np.ndarray) -> None:
        """Once more what failed: it was interrupted, or says why."""
        sent = LIBC.syscall(ENTER, self.descriptor, int(state[UNSENT]), 1, GET_EVENTS, None, 0)
        if sent >= 0:
            state[UNSENT] -= sent
        elif (number := ctypes.get_errno()) not in (errno.EINTR, errno.EAGAIN, errno.EBUSY):
            raise OSError(number, f"io_uring: {os.strerror(number)}")


@njit(nogil=True, cache=True, error_model="numpy")
def _run(
    syscall: Any, ring: Any, words: Any, at: Any, sqes: Any, cqes: Any, descriptor: Any, size: Any, unit: Any,
    operation: Any, memory: Any, depth: Any, requests: Any, done: Any, again: Any, state: Any,
) -> Any:  # fmt: skip
    """Send requests and take what has ended until all have; False where the kernel would not be entered, and what was
    begun goes on with the next call."""
    while state[FINISHED] < len(requests):
        tail, mask = words[at[SQ_TAIL]], words[at[SQ_MASK]]
        while state[IN_FLIGHT] < depth and (state[AGAIN] or state[NEXT] < len(requests)):
            if state[AGAIN]:
                state[AGAIN] -= 1
                index = again[state[AGAIN]]
            else:
                index = state[NEXT]
                state[NEXT] += 1
            offset, length, place = requests[index]
            sqe = sqes[np.int64(tail & mask)]
            sqe[0] = operation | descriptor << 32
            here = done[index]
            sqe[1], sqe[2], sqe[3], sqe[4] = offset + here, memory + place + here, length - here, index
            tail = np.uint32(tail + 1)
            state[IN_FLIGHT] += 1
            state[UNSENT] += 1
        fence()
        words[at[SQ_TAIL]] = tail
        fence()
        sent = call(syscall, (ENTER, ring, state[UNSENT], 1, GET_EVENTS, 0, 0))
        if sent < 0:
            return False
        state[UNSENT] -= sent
        _take(words, at, cqes, size, unit, requests, done, again, state)
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _take(
    words: Any, at: Any, cqes: Any, size: Any, unit: Any, requests: Any, done: Any, again: Any, state: Any
) -> None:
    """Take what has ended: finished, or to be sent again where it was cut short."""
    fence()
    head, mask = words[at[CQ_HEAD]], words[at[CQ_MASK]]
    while head != words[at[CQ_TAIL]]:
        fence()
        cqe = cqes[np.int64(head & mask)]
        index, result = cqe[0], np.int64(np.int32(cqe[1] & 0xFFFFFFFF))
        offset, length = requests[index, 0], requests[index, 1]
        state[IN_FLIGHT] -= 1
        if result > 0:
            if offset + done[index] + result < size:
                result -= result % unit
            done[index] += result
        is_interrupted = result == -4 or result == -11  # EINTR, EAGAIN
        if done[index] >= min(length, size - offset) or not (result > 0 or is_interrupted):
            state[FINISHED] += 1
        else:
            again[state[AGAIN]] = index
            state[AGAIN] += 1
        head = np.uint32(head + 1)
    fence()
    words[at[CQ_HEAD]] = head
