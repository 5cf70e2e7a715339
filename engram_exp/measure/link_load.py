"""Blocks of a key-value cache that cross the link while a run is timed, as where an engine keeps some of them in host
memory."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from threading import Event, Thread
from time import perf_counter

import torch

from engram_exp.errors import ConfigError
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.placement import kept_stream
from engram_exp.stage import Tensors
from engram_exp.strategy.schedule import Replay

POOL_BYTES = 2**28  # of host memory that blocks are read from and written to in turn, so that no cache holds them all
MOST_PARTS = 64  # of it, each with a graph of its copies
TURN_S = 1e-3  # between two launches, at least: each costs the thread that measures its turn at Python's lock

Turns = Generator[None, None, None]


@dataclass
class Pace:
    """How often something happened.

    turns: so far.
    seconds: that they were spread over, once that is over.
    error: that ended them.
    """

    turns: int = 0
    seconds: float = 0.0
    error: Exception | None = None

    def per_s(self) -> float:
        """Turns in a second."""
        return self.turns / self.seconds


@contextmanager
def paced(turns: Turns, period_s: float, cpus: Collection[int]) -> Iterator[Pace]:
    """Take a turn every `period_s` in a thread of its own, from entering until leaving. A turn that comes late delays
    those behind it: what is missed is not made up for in a burst.

    Args:
        turns: resumed for each, and closed, in that thread.
        period_s: from one to the next; the first comes after one period.
        cpus: on which the kernel may place the thread, whatever this one is tied to.

    Raises:
        Exception: what a turn raised. It is raised on leaving, unless something else is.
    """
    pace, left = Pace(), Event()
    thread = Thread(target=_take, args=(turns, period_s, cpus, left, pace), daemon=True, name="paced")
    thread.start()
    try:
        yield pace
    finally:
        left.set()
        thread.join()
    if pace.error:
        raise pace.error


def _take(turns: Turns, period_s: float, cpus: Collection[int], left: Event, pace: Pace) -> None:
    try:
        os.sched_setaffinity(0, cpus)  # of this thread
        began = due = perf_counter()
        with closing(turns):
            while True:
                due = max(due + period_s, perf_counter())
                if left.wait(due - perf_counter()):
                    break
                next(turns)
                pace.turns += 1
        pace.seconds = perf_counter() - began
    except Exception as error:
        pace.error = error


class Copies:
    """Copies of blocks to a device and back, one behind the other on a stream of their own.

    The copies of a turn are one CUDA graph: a single launch, however many there are.

    Args:
        device: a CUDA device.
        gb_per_s: 10^9 bytes a second, both ways together.
        block_bytes: of a copy.
    """

    def __init__(self, device: torch.device, gb_per_s: float, block_bytes: int) -> None:
        blocks, parts = turn_of(gb_per_s, block_bytes)
        self.turn_bytes = 2 * blocks * block_bytes
        self.memory = HostMemory(parts * blocks * block_bytes, huge_pages=True)
        self.memory.bytes.random_()
        self.memory.pin()
        self.block = torch.empty(block_bytes, dtype=torch.uint8, device=device)
        self.stream, self.copied = kept_stream(device.type, "link load"), torch.cuda.Event(blocking=True)
        self.parts = [(part,) for part in self.memory.bytes.view(parts, blocks, block_bytes)]
        self.replays = [Replay(partial(_there_and_back, self.block)) for _ in self.parts]
        for replay, part in zip(self.replays, self.parts, strict=True):
            replay(part)  # captures

    def turns(self) -> Turns:
        """Launch the copies of one turn after the other; the last have ended once this is closed. No more than one turn
        is under way at a time, so that a link that is too slow lowers the rate and lengthens no queue."""
        try:
            with self.stream:
                for replay, part in cycle(zip(self.replays, self.parts, strict=True)):
                    self.copied.synchronize()
                    replay(part)
                    self.copied.record()
                    yield
        finally:
            self.stream.synchronize()


def _there_and_back(on_device: torch.Tensor, part: Tensors) -> Tensors:
    for block in part[0]:
        on_device.copy_(block, non_blocking=True)
        block.copy_(on_device, non_blocking=True)
    return part


def turn_of(gb_per_s: float, block_bytes: int) -> tuple[int, int]:
    """Blocks of a turn, and turns until the same blocks come again."""
    most = max(1, POOL_BYTES // block_bytes)
    blocks = min(most, max(1, math.ceil(gb_per_s * 1e9 * TURN_S / (2 * block_bytes))))
    return blocks, min(MOST_PARTS, most // blocks)


@dataclass
class LinkLoad:
    """What was moved meanwhile.

    pace: of the turns.
    turn_bytes: of one, both ways together.
    """

    pace: Pace
    turn_bytes: int

    @property
    def reached_gb_per_s(self) -> float:
        """10^9 bytes a second, both ways together, from entering until leaving."""
        return self.pace.per_s() * self.turn_bytes / 1e9


def check_link(gb_per_s: float, device: torch.device) -> None:
    """Refuse a load of a link that is not there.

    Raises:
        ConfigError: naming the device.
    """
    if gb_per_s and device.type != "cuda":
        remedy = f"there is no link to load: the device is {device}, and this needs a CUDA device; 0 would work"
        raise ConfigError("link_load_gb_per_s", gb_per_s, remedy)


@contextmanager
def link_load(
    device: torch.device, gb_per_s: float, block_bytes: int, cpus: Collection[int]
) -> Iterator[LinkLoad | None]:
    """Move blocks through the link at a rate, from entering until leaving.

    Args:
        device: a CUDA device.
        gb_per_s: 10^9 bytes a second, half of it to the device and half of it back; 0: nothing is moved.
        block_bytes: that are copied at a time.
        cpus: on which the kernel may place the thread that launches the copies.

    Returns:
        What was moved, to be read once this is left; None without a load.

    Raises:
        ConfigError: there is no link.
        Exception: what a copy raised.
    """
    check_link(gb_per_s, device)
    if not gb_per_s:
        yield None
        return
    copies = Copies(device, gb_per_s, block_bytes)
    with paced(copies.turns(), copies.turn_bytes / (gb_per_s * 1e9), cpus) as pace:
        yield LinkLoad(pace, copies.turn_bytes)
