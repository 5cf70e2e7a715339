"""Three clocks around one call."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns
from typing import NamedTuple

import torch

from engram_exp.machine.disturbance import SmClock


class Sample(NamedTuple):
    """One timed iteration, in milliseconds.

    wall_ms: from the call until its work is done everywhere.
    device_ms: between events on the device's stream before and after; None where the case does no device work. CPU
        work between the two counts.
    enqueue_ms: until the call returned and the host was free again; None where the case does no device work.
    """

    wall_ms: float
    device_ms: float | None
    enqueue_ms: float | None

    def of_one(self, times: int) -> Sample:
        """Of one of several that were timed together."""
        device_ms, enqueue_ms = (None if value is None else value / times for value in self[1:])
        return Sample(self.wall_ms / times, device_ms, enqueue_ms)


class Clock:
    """Times calls that may leave work on a device.

    Args:
        device: what is waited for.
        shared: others keep the device busy, too, on streams of their own: it is the current stream that is waited for,
            and what a call leaves on other streams only as far as this one waits for them.

    result: what the last call returned.
    """

    result: object

    def __init__(self, device: torch.device, *, shared: bool = False) -> None:
        self.device, self.shared = device, shared
        self.has_stream = device.type != "cpu"
        if self.has_stream:
            self.start = torch.Event(device=device.type, enable_timing=True)
            self.end = torch.Event(device=device.type, enable_timing=True)
        uuid = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
        self.sm_clock = SmClock(uuid) if uuid else None

    def synchronize(self) -> None:
        """Wait until the device is idle, or a shared one has done what this thread gave it."""
        if self.has_stream:
            if self.shared:
                torch.accelerator.current_stream(self.device).synchronize()
            else:
                torch.accelerator.synchronize()

    def slowest(self, seconds: float) -> float:
        """A time that decides what is done next: of several ranks, all must take the same decision."""
        return seconds

    def sm_clock_mhz(self) -> int | None:
        """The clock of the device's multiprocessors now; None where there is none to ask."""
        return self.sm_clock.mhz() if self.sm_clock else None

    def time(self, call: Callable[[], object], *, uses_device: bool) -> Sample:
        """Time one call. Nothing but the call and two events happens between the first and the last look at a clock."""
        self.result = None
        if not (uses_device and self.has_stream):
            self.synchronize()
            began = perf_counter_ns()
            self.result = call()
            return Sample((perf_counter_ns() - began) / 1e6, None, None)
        self.synchronize()
        began = perf_counter_ns()
        self.start.record()
        self.result = call()
        self.end.record()
        returned = perf_counter_ns()
        self.synchronize()
        ended = perf_counter_ns()
        return Sample((ended - began) / 1e6, self.start.elapsed_time(self.end), (returned - began) / 1e6)
