"""What rates are measured with: memory that is large enough, clocks, and the fastest of several calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property

import torch

from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.memory import free_device_bytes, free_host_bytes
from engram_exp.machine.ranks import ALONE, Ranks
from engram_exp.measure.clock import Clock
from engram_exp.vocabulary import DEVICE, HOST

CPU = torch.device("cpu")
MIB = 2**20
HOST_BYTES = 2**31  # of memory, unless less is free ...
LINK_BYTES = 2**35  # ... of the host's, that the device reads
DEVICE_BYTES = 2**30
FREE_SHARE = 4  # ... which is more than so much divided by this
SECONDS = 0.25  # for each measurement ...
SHORT = 0.05  # ... and for each of many points of a curve
SAMPLES = 4  # of each, at least


def host_bytes(device: torch.device) -> int:
    """Host memory that rates can be measured on now, at most.

    Args:
        device: the accelerator, or the CPU that stands in for it.
    """
    return min(HOST_BYTES if device.type == "cpu" else LINK_BYTES, free_host_bytes() // FREE_SHARE)


class Rig:
    """The machine on the bench.

    Args:
        device: the accelerator, or the CPU that stands in for it.
        ranks: that measure together.
    """

    def __init__(self, device: torch.device, ranks: Ranks = ALONE) -> None:
        self.device, self.ranks = device, ranks
        self.devices = {HOST: CPU} if device.type == "cpu" else {HOST: CPU, DEVICE: device}
        self.clocks = {place: Clock(device) for place, device in self.devices.items()}
        self.host_bytes = host_bytes(device)

    @cached_property
    def memory(self) -> HostMemory:
        """Host memory in huge pages, all of it written."""
        size = min(HOST_BYTES, self.host_bytes)
        memory = HostMemory(size // (4 * MIB) * (4 * MIB), huge_pages=True)
        memory.bytes.random_()
        return memory

    def bytes_in(self, place: str) -> torch.Tensor:
        """Memory of a place that has been written, uint8 [...]."""
        if place == HOST:
            return self.memory.bytes
        size = min(DEVICE_BYTES, free_device_bytes(self.device) // FREE_SHARE)
        return torch.zeros(size // MIB * MIB, dtype=torch.uint8, device=self.device)

    def best_s(
        self,
        place: str,
        call: Callable[[], object],
        seconds: float = SECONDS,
        before: Callable[[], object] | None = None,
        least: int = 1,
    ) -> float:
        """The fastest of several calls, in seconds. No more are made once they have taken `seconds`.

        Args:
            place: whose clock is looked at.
            call: what is timed.
            seconds: see above.
            before: called before each, untimed.
            least: calls that are made even if each takes longer than that.
        """
        clock = self.clocks[place]
        clock.time(call, uses_device=True)
        best, taken, deadline = float("inf"), 0, time.perf_counter() + seconds
        while taken < SAMPLES or time.perf_counter() < deadline:
            if before:
                before()
            best = min(best, clock.time(call, uses_device=True).wall_ms / 1e3)
            taken += 1
            if best > seconds and taken >= least:
                break
        return best
