"""The link between host and accelerator: copies by its engine at each size, and rows that a kernel reads through it.

`link` is bytes of transfers: the measured curve has a latency and a rate. `link rows` is bytes of rows: no kernel reads
random rows faster than the link copies. What both ask for shares one link.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from engram_exp.measure.curve import Curve, points, time_at
from engram_exp.measure.rates import Limit, Load, Peaks, Work
from engram_exp.measure.rig import Rig
from engram_exp.vocabulary import DEVICE, LINK

TRANSFER_BYTES = [2**power for power in range(10, 31, 2)]
TO_DEVICE = "link_to_device_ms"


def measure(rig: Rig) -> dict[str, dict[str, float]]:
    """`link_to_device_ms`: bytes -> ms of a copy from pinned memory."""
    if rig.device.type != "cuda":
        return {}
    rig.memory.pin()
    on_device = torch.empty(TRANSFER_BYTES[-1], dtype=torch.uint8, device=rig.device)
    times_ms = {}
    for size in TRANSFER_BYTES:
        if size <= rig.memory.bytes.nbytes:
            copy = partial(on_device[:size].copy_, rig.memory.bytes[:size], non_blocking=True)
            times_ms[str(size)] = 1e3 * rig.best_s(DEVICE, copy)
    return {TO_DEVICE: times_ms}


def bounds(work: Work, load: Load, peaks: Peaks) -> Iterator[Limit]:
    """One bound for all that goes through the link."""
    copied, read = work.get("link", 0), work.get("link rows", 0)
    if TO_DEVICE in peaks and (copied or read):
        curve = peaks[TO_DEVICE]
        copying_ms = time_at(curve, copied) if copied else 0.0
        yield Limit(copying_ms + read / _bytes_per_s(curve) * 1e3, LINK)


def in_words(peaks: Peaks, dtype: str) -> Iterator[str]:
    """The best rate of a transfer."""
    if TO_DEVICE in peaks:
        yield f"link {_bytes_per_s(peaks[TO_DEVICE]) / 1e9:.1f} GB/s"


def _bytes_per_s(curve: Curve) -> float:
    return max(size / ms * 1e3 for size, ms in points(curve))
