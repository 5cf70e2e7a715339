"""Requests to read a file: all of them come, whatever is cut short or interrupted, or they say what is wrong."""

import ctypes
import errno
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_exp.errors import ConfigError, SkippedError
from engram_exp.machine import uring
from engram_exp.machine.native_calls import LIBC, address_of
from engram_exp.machine.requests import OpenFile, Readers
from engram_exp.machine.uring import ENTER, Ring

SIZE = 40 * 4096
PREAD = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_long)
SYSCALL = ctypes.CFUNCTYPE(ctypes.c_long, *[ctypes.c_long] * 7)
BLOCKS = np.array([[block * 4096, 4096 * (1 + block % 3), n * 3 * 4096] for n, block in enumerate([0, 7, 3, 37, 7])])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "file"
    path.write_bytes(np.random.default_rng(0).bytes(SIZE))
    return path


def opened(path, unit=1, direct=False):
    return OpenFile(str(path), SIZE, unit=unit, direct=direct)


def aligned(size):
    """Memory that begins where a block may."""
    memory = np.zeros(size + 4096, dtype=np.uint8)
    return memory[-memory.ctypes.data % 4096 :][:size]


def require_read(path, requests, memory):
    content = path.read_bytes()
    for offset, length, place in requests.tolist():
        assert memory[place : place + length].tobytes() == content[offset : offset + length]


def disturbed_pread(seed, unit):
    """pread(2), cut short or interrupted every now and then."""
    chance = random.Random(seed)

    def pread(descriptor, memory, count, offset):
        if chance.random() < 0.2:
            return -1
        count = chance.randint(1, count) if chance.random() < 0.5 else count
        content = os.pread(descriptor, count, offset)
        ctypes.memmove(memory, content, len(content))
        return len(content)

    return PREAD(pread)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), threads=st.integers(1, 9), unit=st.sampled_from([1, 512]), data=st.data())
def test_threads_read_all_that_was_asked_for(file, seed, threads, unit, data):
    places = st.tuples(st.integers(0, SIZE // unit - 1), st.integers(1, 4))
    asked = data.draw(st.lists(places, max_size=20))
    requests = [(at * unit, min(n * unit, SIZE - at * unit), i * 4 * unit) for i, (at, n) in enumerate(asked)]
    requests = np.array(requests, dtype=np.int64).reshape(-1, 3)
    memory, disturbed = np.zeros(4 * unit * len(requests), dtype=np.uint8), disturbed_pread(seed, unit)
    Readers(opened(file, unit), threads, address_of(disturbed)).read(requests, memory)
    require_read(file, requests, memory)


def disturbed_syscall(ring, seed):
    """syscall(2), interrupted every now and then, and with reads that were cut short, interrupted or refused."""
    chance = random.Random(seed)

    def syscall(number, *arguments):
        assert number == ENTER
        if chance.random() < 0.2:
            return -1
        result = LIBC.syscall(number, *map(ctypes.c_long, arguments))
        words, at = ring.words, ring.at
        for turn in range(int(words[at[uring.CQ_HEAD]]), int(words[at[uring.CQ_TAIL]])):
            cqe = ring.cqes[turn & int(words[at[uring.CQ_MASK]])]
            if chance.random() < 0.6:
                cqe[1] = chance.choice([-errno.EINTR, -errno.EAGAIN, -errno.EIO, 0, 100, 512]) & 0xFFFFFFFF
        return result

    return SYSCALL(syscall)


@pytest.fixture
def has_uring(file):
    try:
        Ring(opened(file), 1, aligned(4096))
    except SkippedError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("has_uring")
@pytest.mark.parametrize("registers", [True, False])
@pytest.mark.parametrize("depth", [1, 2, 3, 64])
@pytest.mark.parametrize("seed", range(3))
def test_a_ring_reads_all_that_was_asked_for(file, monkeypatch, seed, depth, registers):
    if not registers:
        monkeypatch.setattr(Ring, "_register", lambda self: False)
    memory = aligned(3 * 4096 * len(BLOCKS))
    ring = Ring(opened(file, 512), depth, memory)
    assert ring.operation == (uring.READ_FIXED if registers else uring.READ)
    for _ in range(40):  # more than the ring has places
        memory[:] = 0
        ring.read(BLOCKS)
        require_read(file, BLOCKS, memory)
    disturbed = disturbed_syscall(ring, seed)
    ring.syscall = address_of(disturbed)
    memory[:] = 0
    ring.read(BLOCKS)
    require_read(file, BLOCKS, memory)
    ring.read(BLOCKS[:0])


@pytest.mark.parametrize("way", ["threads", "ring"])
def test_a_file_that_becomes_shorter_is_told(tmp_path, way, request):
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    file, memory = opened(path, 512), aligned(3 * 4096 * len(BLOCKS))
    if way == "ring":
        request.getfixturevalue("has_uring")
        read = Ring(file, 4, memory).read
    else:
        read = lambda requests: Readers(file, 4).read(requests, memory)  # noqa: E731
    os.truncate(path, SIZE // 2)
    with pytest.raises(ConfigError, match=rf"^table\.path={path}: has {SIZE // 2:,} bytes, and had {SIZE:,} when"):
        read(BLOCKS)
    with pytest.raises(ConfigError, match="delete it to have it made anew"):
        opened(path)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"^table\.path=.*/none: cannot be opened \(No such file or directory\)$"):
        OpenFile(str(tmp_path / "none"), 1)


def test_a_file_system_that_refuses_to_read_past_the_cache_is_told(file, monkeypatch):
    def refusing(path, flags):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(ConfigError, match="refuses O_DIRECT; lookup=pread and lookup=mmap do without"):
        opened(file, direct=True)


@pytest.mark.parametrize(
    ("number", "reason"), [(errno.ENOSYS, "this kernel has none"), (errno.EPERM, "kernel.io_uring_disabled")]
)
def test_a_kernel_that_refuses_io_uring_skips_it_with_the_reason(file, monkeypatch, number, reason):
    monkeypatch.setattr(uring, "LIBC", SimpleNamespace(syscall=lambda *_: (ctypes.set_errno(number), -1)[1]))
    with pytest.raises(SkippedError, match=rf"^no io_uring: .*{reason}.*; lookup=direct does without$"):
        Ring(opened(file), 1, aligned(4096))


def test_readers_that_would_share_a_core_are_refused(file, monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"^hardware\.pin_threads=True: "):
        Readers(opened(file), 2)
