"""The loop over cases: warm up until steady, then take samples of all cases in a random order."""

from __future__ import annotations

import gc
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import cycle

from engram_exp.measure.clock import Clock, Sample

log = logging.getLogger(__name__)

WARMUP_SHARE = 0.05  # of a case's budget
WINDOW_CALLS = 3  # a case is steady once the sum of its last calls ...
STEADY_GAIN = 0.05  # ... is no more than this share smaller than that of the calls before them


@dataclass
class Case:
    """Something to time.

    Args:
        name: as the CSV calls it.
        calls: one for each of the inputs that rotate through the iterations.
        uses_device: whether it leaves work on the device.
    """

    name: str
    calls: Sequence[Callable[[], object]]
    uses_device: bool


@dataclass
class Timing:
    """What the loop found out about a case. `order` counts the samples of all cases as they were taken."""

    steady: bool = False
    stop_reason: str = ""
    samples: list[Sample] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    spent_s: float = 0.0


Progress = Callable[[str, dict[str, Timing]], None]


def measure(
    cases: Sequence[Case], clock: Clock, *, iterations: int, budget_s: float, seed: int, progress: Progress
) -> dict[str, Timing]:
    """Time every case.

    Args:
        cases: of one run.
        clock: of its device.
        iterations: samples of a case, at most.
        budget_s: seconds of a case, at most; the iteration under way is finished.
        seed: of the order.
        progress: called between samples with the case that comes next.
    """
    timings = {case.name: Timing() for case in cases}
    gc.collect()
    gc.disable()
    try:
        calls = _apart(cases)
        for case in cases:
            progress(case.name, timings)
            backwards = reversed(calls[case.name])  # inputs that warmed up are those that timing comes to last
            timings[case.name].steady = _warm_up(case, backwards, clock, budget_s * WARMUP_SHARE)
        log.info("warmed up; the first timed sample follows")
        order = random.Random(seed)
        running = list(cases)
        turn = taken = 0
        while running:
            order.shuffle(running)
            for case in tuple(running):
                timing = timings[case.name]
                progress(case.name, timings)
                call = calls[case.name][turn % len(case.calls)]
                timing.samples.append(clock.time(call, uses_device=case.uses_device))
                timing.order.append(taken)
                taken += 1
                timing.spent_s += timing.samples[-1].wall_ms / 1e3
                timing.stop_reason = _stop_reason(timing, iterations, budget_s)
                if timing.stop_reason:
                    running.remove(case)
            turn += 1
    finally:
        gc.enable()
    return timings


def _apart(cases: Sequence[Case]) -> dict[str, Sequence[Callable[[], object]]]:
    """The calls of each case, beginning where no other does: it would find in a cache what that has just read."""
    calls = {case.name: case.calls for case in cases}
    rotating = [case for case in cases if len(case.calls) > 1]
    for number, case in enumerate(rotating):
        first = number * len(case.calls) // len(rotating)
        calls[case.name] = [*case.calls[first:], *case.calls[:first]]
    return calls


def _warm_up(case: Case, calls: Iterable[Callable[[], object]], clock: Clock, budget_s: float) -> bool:
    """Call a case at least once, until its times stop falling or the budget is spent; whether they stopped."""
    turns = cycle(calls)
    times_ms: list[float] = []
    deadline = time.perf_counter() + budget_s
    while not times_ms or time.perf_counter() < deadline:
        times_ms.append(clock.time(next(turns), uses_device=case.uses_device).wall_ms)
        earlier, latest = times_ms[-2 * WINDOW_CALLS : -WINDOW_CALLS], times_ms[-WINDOW_CALLS:]
        if len(earlier) == WINDOW_CALLS and sum(latest) >= (1 - STEADY_GAIN) * sum(earlier):
            return True
    return False


def _stop_reason(timing: Timing, iterations: int, budget_s: float) -> str:
    if len(timing.samples) >= iterations:
        return "iterations"
    return "budget" if timing.spent_s >= budget_s else ""
