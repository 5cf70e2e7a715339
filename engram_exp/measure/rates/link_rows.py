"""Random rows that a kernel reads through the link: bound by address translation, and so by the memory that they are
spread over, by how many are read at a time and by their order, more than by bytes.

They are read by this project's own kernel, in the order that they come in: sorted ids stand for any order that one may
give them, which costs time of its own. So the bound holds whatever the order is, and `auto` has what it goes by.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import torch

from engram_exp.errors import RegistrationError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.memory import free_device_bytes
from engram_exp.machine.placement import Placement, has_triton, multiprocessors
from engram_exp.measure.curve import least_time_at, measured_from, nearest_to, points
from engram_exp.measure.rates import Limit, Load, Peaks, Work
from engram_exp.measure.read_times import PARTITIONS, READS, as_key, as_launch
from engram_exp.measure.rig import CPU, FREE_SHARE, LINK_BYTES, MIB, Rig
from engram_exp.stage import Tensors
from engram_exp.steps.lookup.order import launches
from engram_exp.strategy.schedule import Replay
from engram_exp.vocabulary import AS_ASKED, DEVICE, HOST, SORTED

log = logging.getLogger(__name__)

BEST = "link_rows_us"
SPREAD_BYTES = [*(2**power for power in (30, 32, 34)), LINK_BYTES]
ROW_IDS = (24, 1536, 24_576, 196_608, 1_572_864)  # of a call
FEW_ROW_IDS = 24  # up to these it is the latency that is measured, and no rate
ROW_BYTES = (64, 128, 264, 512, 1024)
COPIED = RowFormat(64, torch.bfloat16)  # launches are measured of these, 128 bytes ...
WIDENED = RowFormat(256, torch.bfloat16, values_per_scale=32)  # ... and of these, 264 bytes
WARPS = 4
SAMPLE_ROW_IDS, SAMPLE_CALLS = 98_304, 64  # a sample is as many calls as ask for so many row ids, but no more
SECONDS = 0.025  # for each of many points ...
LEAST_SAMPLES = 3  # ... or so many samples, where each takes longer: one alone may have been disturbed


class Rows(NamedTuple):
    """A table in some of the host's memory, of any contents."""

    parts: tuple[torch.Tensor, ...]
    row_format: RowFormat
    place: str = HOST

    @classmethod
    def over(cls, memory: torch.Tensor, row_format: RowFormat) -> Rows:
        """As many rows as memory uint8 [bytes] holds."""
        row_bytes = _bytes_of(row_format)
        rows = memory[: len(memory) // row_bytes * row_bytes].view(row_format.storage_dtype)
        return cls((rows.view(-1, row_format.width),), row_format)


def measure(rig: Rig) -> dict[str, dict[str, Any]]:
    """`link_reads_us`: bytes that rows are spread over -> bytes of a row (128; 264, which are widened) -> order of the
    row ids -> launch -> row ids of a call -> microseconds. `partition_us`: the first bytes -> row ids -> microseconds
    of partitioning them. `link_rows_us`: the first bytes -> bytes of a row -> row ids -> microseconds, the best of the
    orders and launches."""
    if rig.device.type != "cuda" or not has_triton():
        return {}
    size = min(SPREAD_BYTES[-1], rig.host_bytes) // MIB * MIB
    try:
        memory = Placement(CPU, pinned=True).empty(size, dtype=torch.uint8)
    except RegistrationError as error:
        log.warning("how fast rows are read through the link is not known: %s", error)
        with suppress(RuntimeError):  # the driver's error is reported once more, by the next launch
            torch.zeros(1, device=rig.device)
        return {}
    return curves_of(rig, memory)


def curves_of(rig: Rig, memory: torch.Tensor) -> dict[str, dict[str, Any]]:
    """The curves of `measure`, on memory uint8 [bytes] that the device reads."""
    spreads = [*(size for size in SPREAD_BYTES if size < len(memory)), min(len(memory), SPREAD_BYTES[-1])]
    most = free_device_bytes(rig.device) // FREE_SHARE // (WIDENED.values * WIDENED.dtype.itemsize)
    row_ids = [number for number in ROW_IDS if number <= most]
    curves: dict[str, dict[str, Any]] = {READS: {}, PARTITIONS: {}, BEST: {}}
    for size in spreads:
        part = memory[:size]
        reads = {str(_bytes_of(rows)): _reads_us(rig, part, row_ids, rows) for rows in (COPIED, WIDENED)}
        curves[READS][str(size)] = reads
        curves[PARTITIONS][str(size)] = _partition_us(rig, part, row_ids)
        curves[BEST][str(size)] = _best_reads_us(rig, part, row_ids, reads)
    return curves


def _bytes_of(row_format: RowFormat) -> int:
    return row_format.width * row_format.storage_dtype.itemsize


def _reads_us(rig: Rig, memory: torch.Tensor, row_ids: list[int], row_format: RowFormat) -> dict[str, Any]:
    """Order -> launch -> row ids -> microseconds."""
    rows = Rows.over(memory, row_format)
    times: dict[str, dict[str, Any]] = {AS_ASKED: {}, SORTED: {}}
    for launch in map(as_key, launches(multiprocessors(rig.device))):
        read = _lookup(rig, rows, row_ids[-1], launch)
        for order, of_launch in times.items():
            of_launch[launch] = {str(count): _us(rig, rows, count, order, read) for count in row_ids}
    return times


def _best_reads_us(rig: Rig, memory: torch.Tensor, row_ids: list[int], reads: dict[str, Any]) -> dict[str, Any]:
    """Bytes of a row -> row ids -> microseconds: the best of all launches on sorted ids, and of the one that is the
    best for rows of the nearest size that all were measured of; of these sizes, also of what was measured there."""
    times: dict[str, dict[str, float]] = {}
    for row_bytes in ROW_BYTES:
        rows = Rows.over(memory, RowFormat(row_bytes // 2, torch.bfloat16))
        near = nearest_to(reads, row_bytes)
        times[str(row_bytes)] = of_size = {}
        for count in map(str, (number for number in row_ids if number > FEW_ROW_IDS)):
            known = {(order, launch): near[order][launch][count] for order in near for launch in near[order]}
            best = min(known, key=known.__getitem__)
            tried = {best, *((SORTED, launch) for launch in near[SORTED])}
            found = [known[best]] if str(row_bytes) in reads else []
            if rows.row_format != COPIED:  # of which the same was measured
                lookups = ((order, _lookup(rig, rows, int(count), launch)) for order, launch in tried)
                found += [_us(rig, rows, int(count), order, lookup) for order, lookup in lookups]
            of_size[count] = min(found)
    return times


def _partition_us(rig: Rig, memory: torch.Tensor, row_ids: list[int]) -> dict[str, float]:
    """Row ids -> microseconds."""
    from engram_exp.steps.lookup.partition_triton import Partition

    rows = Rows.over(memory, WIDENED)
    partition = Partition(len(rows.parts[0]), WIDENED.width, row_ids[-1], rig.device)
    ordered, places = torch.empty(2, row_ids[-1], dtype=torch.int32, device=rig.device)

    def call(ids: torch.Tensor) -> None:
        partition(ids.view(-1), ordered[: ids.numel()], places[: ids.numel()])

    return {str(count): _us(rig, rows, count, AS_ASKED, call) for count in row_ids}


def _lookup(rig: Rig, rows: Rows, most: int, launch: str) -> Callable[[torch.Tensor], Any]:
    """What reads row ids [1, N, 1], at most so many, in the order that they come in."""
    from engram_exp.steps.lookup.triton import TritonLookup  # Triton comes with PyTorch's CUDA builds only

    per_program, programs = as_launch(launch)
    return TritonLookup(rows, most, 1, Placement(rig.device), AS_ASKED, 0, per_program, WARPS, programs, widen=True)


def _us(rig: Rig, rows: Rows, count: int, order: str, call: Callable[[torch.Tensor], Any]) -> float:
    """The fastest of several calls on so many row ids, in microseconds. They are drawn anew before each sample, since a
    cache keeps rows; short calls are timed several at a time, in one graph, since enqueueing them takes longer."""
    calls = min(SAMPLE_CALLS, max(1, SAMPLE_ROW_IDS // count))
    row_ids = torch.empty(calls, 1, count, 1, dtype=torch.int32, device=rig.device)

    def draw() -> None:
        torch.randint(len(rows.parts[0]), row_ids.shape, out=row_ids)
        if order == SORTED:
            row_ids.copy_(row_ids.sort(dim=2).values)

    def run(batches: Tensors) -> Tensors:
        for each in batches[0]:
            call(each)
        return batches

    draw()
    runs = Replay(run) if rig.device.type == "cuda" else run
    return 1e6 * rig.best_s(DEVICE, partial(runs, (row_ids,)), SECONDS, draw, LEAST_SAMPLES) / calls


def bounds(work: Work, load: Load, peaks: Peaks) -> Iterator[Limit]:
    """The bound of rows of this size in a table of this size, read so many at a time. There is none for rows or tables
    that are smaller than those that were measured: they may be read faster."""
    rows = work.get("link row reads", 0)
    times_us = [
        least_time_at(times, load.row_ids)
        for of_spread in measured_from(peaks.get(BEST, {}), load.table_bytes)
        for times in measured_from(of_spread, load.row_bytes)
    ]
    if rows and times_us:
        yield Limit(rows * min(times_us) / load.row_ids / 1e3, "link rows")


def in_words(peaks: Peaks, dtype: str) -> Iterator[str]:
    """The rate of the most rows in the most memory."""
    if BEST in peaks:
        spread, by_size = points(peaks[BEST])[-1]
        rows, time_us = points(nearest_to(by_size, WIDENED.width))[-1]
        yield f"link rows {rows / time_us:.3g} M/s in {spread / 1e9:.1f} GB"
