"""What ranks of one host do at once: copies through the links of all GPUs, and reads of the host's memory by all.

One rank alone is measured by `link` and `memory`; here each has its own, and the slowest counts. Ranks whose links
share a switch, or whose threads share a memory, are slower together; what they reach bounds runs of as many ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from engram_exp.errors import RegistrationError
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.ranks import Ranks
from engram_exp.measure.rank_clock import RankClock
from engram_exp.measure.rates import Limit, Load, Peaks, Work
from engram_exp.measure.rates.memory import read_all
from engram_exp.measure.rates.peers import best_ms
from engram_exp.measure.rig import FREE_SHARE, SECONDS, Rig
from engram_exp.vocabulary import HOST

log = logging.getLogger(__name__)

LINKS, MEMORY = "links", "host memory of all ranks"  # what sets a limit
BYTES = 2**29  # of each rank's host memory: more than nearly all caches hold ...
BYTES_ON_CPU = 2**26  # ... but where the CPU stands in
EACH = "all_ranks_gb_per_s"


def measure(rig: Rig) -> dict[str, dict[str, Any]]:
    """`all_ranks_gb_per_s`: 10^9 bytes/s of each rank while all copy from pinned memory to their device (`links`), and
    while all read and copy within host memory (`host memory of all ranks`); and the `bytes` of this memory. All ranks
    measure together; one alone nothing."""
    ranks = rig.ranks
    if ranks.size == 1:
        return {}
    most = BYTES_ON_CPU if rig.device.type == "cpu" else BYTES
    own = min(most, rig.host_bytes // (FREE_SHARE * ranks.local_size)) // 8 * 8
    (least_of_all,) = ranks.agree(numbers=(-float(own),))
    memory = HostMemory(int(-least_of_all), huge_pages=True)
    memory.bytes.random_()
    clock, total = RankClock(rig.device, ranks), torch.zeros(())
    source, target = memory.bytes.chunk(2)
    calls: list[Callable[[], object]] = [partial(target.copy_, source), partial(read_all, memory.bytes, total)]
    found = {MEMORY: max(_gb_per_s(clock, call, memory.bytes.nbytes) for call in calls)}
    if rig.device.type == "cuda" and _is_pinned(memory, ranks):
        on_device = torch.empty(memory.bytes.nbytes, dtype=torch.uint8, device=rig.device)
        copy = partial(on_device.copy_, memory.bytes, non_blocking=True)
        found[LINKS] = _gb_per_s(clock, copy, memory.bytes.nbytes)
    return {EACH: {**found, "bytes": memory.bytes.nbytes}}


def _is_pinned(memory: HostMemory, ranks: Ranks) -> bool:
    """Whether every rank's driver has pinned its memory."""
    failed = None
    try:
        memory.pin()
    except RegistrationError as error:
        failed = error
    if refused := ranks.known(failed):
        log.warning("what all links do at once is unknown: %s", refused)
    return refused is None


def bounds(work: Work, load: Load, peaks: Peaks) -> Iterator[Limit]:
    """A bound for what goes through a rank's link, and one for what it moves in host memory, if no cache holds it."""
    rates = peaks.get(EACH, {})
    through_link = work.get("link", 0) + work.get("link rows", 0)
    if LINKS in rates and through_link:
        yield Limit(through_link / rates[LINKS] / 1e6, LINKS)
    moved = work.get(f"{HOST} memory", 0)
    if MEMORY in rates and moved >= 2 * rates["bytes"]:
        yield Limit(moved / rates[MEMORY] / 1e6, MEMORY)


def in_words(peaks: Peaks, dtype: str) -> Iterator[str]:
    """The rates of each rank."""
    rates = peaks.get(EACH, {})
    yield from (f"{name} {rates[name]:.1f} GB/s each, at once" for name in (LINKS, MEMORY) if name in rates)


def _gb_per_s(clock: RankClock, call: Callable[[], object], size_bytes: int) -> float:
    return size_bytes / best_ms(clock, call, SECONDS) / 1e6
