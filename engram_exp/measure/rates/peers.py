"""What arrives from other ranks: bytes by the fastest of the ways that there are, and rows of their memory.

`peers` is bytes that reach each rank while all of them send as much: the measured curve has a latency and a rate, at
each size those of whichever collective, or copy from a peer's memory, was the fastest. `peer rows` is random rows of
the others' device memory that a kernel reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import torch
import torch.distributed as dist

from engram_exp.layer.row_format import RowFormat
from engram_exp.layer.shards import BY_ROWS, Shards
from engram_exp.machine.memory import free_device_bytes
from engram_exp.machine.peer_memory import SymmetricMemory, has_peer_access
from engram_exp.machine.ranks import all_gather
from engram_exp.measure.curve import points, rate_of_rows, time_at
from engram_exp.measure.rank_clock import RankClock
from engram_exp.measure.rates import Limit, Load, Peaks, Work
from engram_exp.measure.rig import FREE_SHARE, SAMPLES, SHORT, Rig
from engram_exp.stage import Tensors
from engram_exp.steps.tables import parts_in
from engram_exp.strategy.schedule import Replay
from engram_exp.vocabulary import PEER_ROWS, PEERS

ARRIVING_BYTES = [2**power for power in range(10, 31, 2)]  # at most; on CPUs ...
ARRIVING_ON_CPU = 2**24  # ... so many
ROW_BYTES = (64, 128, 256, 264, 512, 1024)
ROWS = 196_608  # of a call: those of 8,192 tokens in 24 columns
CALLS = 8  # that are timed together, as one graph: to enqueue one takes about as long as its rows
PEER_BYTES = 2**30  # of each rank's memory that rows are read from
TIMES, RATES = "peers_ms", "peer_rows_per_s"


def measure(rig: Rig) -> dict[str, dict[str, float]]:
    """`peers_ms`: bytes that arrive at each rank -> ms; `peer_rows_per_s`: bytes of a row -> random rows of the others'
    memory that a kernel of each rank reads, all of them at a time. All ranks measure together; one alone nothing."""
    if rig.ranks.size == 1:
        return {}
    clock = RankClock(rig.device, rig.ranks)
    on_cpu = rig.device.type == "cpu"
    reachable = not on_cpu and rig.ranks.share_one_host and has_peer_access(rig.ranks)
    memory = SymmetricMemory(_peer_bytes(rig), rig.ranks, rig.device) if reachable else None
    most = ARRIVING_ON_CPU if on_cpu else min(ARRIVING_BYTES[-1], free_device_bytes(rig.device) // FREE_SHARE)
    (least_of_all,) = rig.ranks.agree(numbers=(-float(most),))
    sizes = [size for size in ARRIVING_BYTES if size <= -least_of_all]
    found = {TIMES: {str(size): min(best_ms(clock, way) for way in _ways(rig, size, memory)) for size in sizes}}
    if memory is not None:
        read = CALLS * ROWS
        found[RATES] = {str(row): read / best_ms(clock, _peer_reads(rig, memory, row)) * 1e3 for row in ROW_BYTES}
    return found


def bounds(work: Work, load: Load, peaks: Peaks) -> Iterator[Limit]:
    """A bound for bytes that arrive, and one for rows that are read."""
    if TIMES in peaks and work.get(PEERS, 0):
        yield Limit(time_at(peaks[TIMES], work[PEERS]), PEERS)
    if RATES in peaks and work.get(PEER_ROWS, 0):
        yield Limit(work[PEER_ROWS] / rate_of_rows(peaks[RATES], load.row_bytes) * 1e3, PEER_ROWS)


def in_words(peaks: Peaks, dtype: str) -> Iterator[str]:
    """The best rate of what arrives."""
    if TIMES in peaks:
        yield f"peers {max(size / ms for size, ms in points(peaks[TIMES])) / 1e6:.1f} GB/s"


def best_ms(clock: RankClock, call: Callable[[], object], seconds: float = SHORT) -> float:
    """The fastest of several calls that all ranks make, of which as many as on all: their times are agreed on."""
    clock.time(call, uses_device=True)
    best_ms, spent_ms, taken = float("inf"), 0.0, 0
    while taken < SAMPLES or spent_ms < 1e3 * seconds:
        wall_ms = clock.time(call, uses_device=True).wall_ms
        best_ms, spent_ms, taken = min(best_ms, wall_ms), spent_ms + wall_ms, taken + 1
    return best_ms


def _ways(rig: Rig, arriving: int, memory: SymmetricMemory | None) -> Iterator[Callable[[], object]]:
    """The ways in which so many bytes arrive at each rank."""
    ranks, others = rig.ranks, rig.ranks.size - 1
    each = max(8, arriving // others // 8 * 8)
    blank = partial(torch.zeros, dtype=torch.uint8, device=rig.device)
    own, found, whole = blank(each), blank(ranks.size * each), blank(ranks.size * each)
    yield partial(all_gather, found, own, ranks.group)
    yield partial(dist.all_to_all_single, found, whole, group=ranks.group)
    summed = whole[: max(8, arriving * ranks.size // (2 * others) // 8 * 8)].view(torch.int64)
    yield partial(dist.all_reduce, summed, group=ranks.group)
    if memory is not None:
        peer = memory.of_ranks[(ranks.rank + 1) % ranks.size]
        target = torch.empty(min(arriving, len(peer)), dtype=torch.uint8, device=rig.device)
        if len(target) == arriving:
            yield partial(target.copy_, peer[:arriving])


def _peer_bytes(rig: Rig) -> int:
    own = min(PEER_BYTES, free_device_bytes(rig.device) // FREE_SHARE)
    (least_of_all,) = rig.ranks.agree(numbers=(-float(own),))
    return int(-least_of_all)


def _peer_reads(rig: Rig, memory: SymmetricMemory, row_bytes: int) -> Callable[[], object]:
    """Random rows of the others' memory, none of this rank's own, drawn once: no cache holds so many."""
    from engram_exp.steps.exchange.peer_triton import PeerKernel  # Triton comes with PyTorch's CUDA builds only

    ranks, row_format = rig.ranks, RowFormat(row_bytes, torch.bfloat16, one_scale=1.0)
    each = len(memory.own) // row_bytes
    shards = Shards([each * ranks.size], each * ranks.size, ranks.size, BY_ROWS)
    table = SimpleNamespace(row_format=row_format, of_ranks=[parts_in(of, each, row_format) for of in memory.of_ranks])
    table.parts = table.of_ranks[ranks.rank]
    away = torch.randint(each * (ranks.size - 1), (CALLS, ROWS, 1), device=rig.device)
    row_ids = (away + each * (ranks.rank + 1)) % (each * ranks.size)
    out = torch.empty(ROWS, row_bytes, dtype=torch.uint8, device=rig.device)
    kernel = PeerKernel(table, shards, out, 32, 4, None)

    def read(calls: Tensors) -> Tensors:
        for each_call in calls[0]:
            kernel(each_call)
        return calls

    return partial(Replay(read), (row_ids,))
