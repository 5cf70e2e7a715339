"""Memory of host and device, in bytes read and written: copies and reads of all sizes, since caches hold what is small.

A stage that is timed in a loop may find in a cache what it read or wrote the call before. An amount counts each value
when it is written and again when it is read, so the memory that it lies in may be half as large: the rate is the best
that was measured from there on.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from numba import njit, prange

from engram_exp.measure.curve import best_from
from engram_exp.measure.rates import Limit, Load, Peaks, Work
from engram_exp.measure.rig import SHORT, Rig
from engram_exp.vocabulary import DEVICE, HOST

WORKING_SET_BYTES = [2**power for power in range(18, 31)]
SAMPLE_BYTES = 2**26  # of one sample: small sizes are repeated, so that a launch or a call is not all of their time


def measure(rig: Rig) -> dict[str, dict[str, float]]:
    """`host_gb_per_s`, `device_gb_per_s`: bytes of a working set -> the better of two rates, that of a copy within it,
    counted as read and written, and that of reading it."""
    curves = {}
    for place in rig.devices:
        memory = rig.bytes_in(place)
        total = torch.zeros((), device=memory.device)
        rates = {}
        for size in WORKING_SET_BYTES:
            if size <= memory.nbytes:
                part = memory[:size]
                source, target = part.chunk(2)
                read = partial(read_all, part, total)
                times = max(1, SAMPLE_BYTES // size)
                best = min(
                    rig.best_s(place, partial(_repeat, call, times), SHORT)
                    for call in (partial(target.copy_, source), read)
                )
                rates[str(size)] = size * times / best / 1e9
        curves[f"{place}_gb_per_s"] = rates
    return curves


def bounds(work: Work, load: Load, peaks: Peaks) -> Iterator[Limit]:
    """One bound for each memory."""
    for place in (HOST, DEVICE):
        moved, curve = work.get(f"{place} memory", 0), peaks.get(f"{place}_gb_per_s")
        if moved and curve:
            yield Limit(moved / best_from(curve, moved / 2) / 1e6, f"{place} memory")


def in_words(peaks: Peaks, dtype: str) -> Iterator[str]:
    """The rates of what no cache holds."""
    for place in (HOST, DEVICE):
        if curve := peaks.get(f"{place}_gb_per_s"):
            yield f"{place} memory {best_from(curve, float('inf')):.0f} GB/s"


def _repeat(call: Any, times: int) -> None:
    for _ in range(times):
        call()


def read_all(part: torch.Tensor, total: torch.Tensor) -> None:
    """Read each byte of some memory once; on a device, its sum goes to `total`."""
    if part.device.type == "cpu":
        _read(part.view(torch.int64).numpy())
    else:
        torch.sum(part.view(torch.float32), dim=0, out=total)


@njit(parallel=True, cache=True)
def _read(words):  # type: ignore[no-untyped-def]
    total = 0
    for index in prange(len(words)):
        total += words[index]
    return total
