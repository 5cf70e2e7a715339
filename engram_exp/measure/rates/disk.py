"""Random reads of a disk past the page cache, by the size of a block and by how many are under way at a time.

They are measured on the file of the run's own table: a small file may lie in a cache of the disk that a large one does
not fit into. `measure.disk_limits` does that, and keeps them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from engram_exp.errors import ConfigError, SkippedError
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.requests import OpenFile, Readers
from engram_exp.machine.uring import Ring
from engram_exp.measure.curve import points
from engram_exp.measure.rates import Limit, Load, Peaks, Work
from engram_exp.measure.rig import Rig

log = logging.getLogger(__name__)

READS = "disk_reads_per_s"
BLOCK_BYTES = (512, 4096, 16384, 65536, 262144)
DEPTHS = (1, 4, 16, 64, 256)
SAMPLE_BYTES = 2**26  # of a sample, at most ...
SAMPLE_READS = 2048  # ... or so many reads ...
SAMPLE_DEPTHS = 16  # ... or as many as so many times the depth
SAMPLES, SECONDS = 3, 0.1  # of each point, at least
USUAL = 4096  # bytes of a block, whose rates are told in words


def measure(rig: Rig) -> dict[str, dict[str, Any]]:
    """Nothing: what a disk can do is measured on the file of a table, which no machine has by itself."""
    return {}


def curves(path: str, size_bytes: int) -> dict[str, dict[str, Any]]:
    """`disk_reads_per_s`: bytes of a block -> reads under way -> reads a second, the best of several samples, spread at
    random over a file; by io_uring, or by threads where there is none. What the disk refuses is left out."""
    memory = HostMemory(SAMPLE_BYTES, huge_pages=True)
    memory.bytes.zero_()
    buffer, random = memory.bytes.numpy()[:SAMPLE_BYTES], np.random.default_rng(0)
    found: dict[str, Any] = {}
    for block_bytes in (size for size in BLOCK_BYTES if size <= size_bytes):
        try:
            file = OpenFile(path, size_bytes, direct=True, unit=block_bytes)
            file.finish(buffer, (0, block_bytes, 0), 0)
        except (ConfigError, OSError) as error:
            log.info("no reads of %s bytes past the page cache: %s", block_bytes, error)
            continue
        found[str(block_bytes)] = {
            str(depth): _reads_per_s(_reader(file, depth, buffer), size_bytes, block_bytes, depth, random)
            for depth in DEPTHS
        }
    return {READS: found} if found else {}


def _reader(file: OpenFile, depth: int, buffer: np.ndarray) -> Callable[[np.ndarray], None]:
    """What reads requests, so many at a time."""
    try:
        return Ring(file, depth, buffer).read
    except SkippedError:
        readers = Readers(file, depth)
        return lambda requests: readers.read(requests, buffer)


def _reads_per_s(
    read: Callable[[np.ndarray], None], size_bytes: int, block_bytes: int, depth: int, random: np.random.Generator
) -> float:
    blocks = size_bytes // block_bytes
    count = min(blocks, SAMPLE_READS, SAMPLE_BYTES // block_bytes, SAMPLE_DEPTHS * depth)
    best, taken, deadline = 0.0, 0, time.perf_counter() + SECONDS
    places = np.arange(count) * block_bytes
    while taken < SAMPLES or time.perf_counter() < deadline:
        offsets = random.integers(blocks, size=count) * block_bytes
        requests = np.stack([offsets, np.full(count, block_bytes), places], axis=1)
        began = time.perf_counter()
        read(requests)
        best, taken = max(best, count / (time.perf_counter() - began)), taken + 1
    return best


def bounds(work: Work, load: Load, peaks: Peaks) -> Iterator[Limit]:
    """The bound of rows that lie at random in a table: those of one block are read once, so the larger the blocks, the
    fewer reads, and the longer each; the best size counts. Fewer reads than can be under way take a latency."""
    rows = work.get("disk rows", 0)
    if rows and READS in peaks:
        times_s = (
            _least_s(_blocks(rows, load.table_bytes, int(size)), by_depth) for size, by_depth in peaks[READS].items()
        )
        yield Limit(min(times_s) * 1e3, "disk rows")


def _blocks(rows: float, table_bytes: int, block_bytes: int) -> float:
    """The blocks that hold so many random rows, on average and at least: as if no row lay in two."""
    blocks = max(1.0, table_bytes / block_bytes)
    return blocks * -math.expm1(-rows / blocks)


def _least_s(reads: float, by_depth: Any) -> float:
    """The time of so many reads, of which no more are under way than there are, and none ends at once."""
    known = points(by_depth)
    deepest = next((depth for depth, _ in known if depth >= reads), known[-1][0])
    rate = max(rate for depth, rate in known if depth <= deepest)
    return max(reads / rate, 1 / max(rate for depth, rate in known if depth == known[0][0]))


def in_words(peaks: Peaks, dtype: str) -> Iterator[str]:
    """The rate and the latency of usual blocks, or the smallest that are larger."""
    if READS in peaks:
        size, by_depth = next(point for point in points(peaks[READS]) if point[0] >= USUAL or point[0] == USUAL)
        rates = points(by_depth)
        best = max(rate for _, rate in rates)
        yield f"disk {best / 1e3:.3g} k reads/s of {size} bytes, {1e6 / rates[0][1]:.0f} us alone"
