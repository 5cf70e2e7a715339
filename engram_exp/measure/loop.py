"""The loop over cases: warm up until times stop falling, then take samples of all cases in a random order."""

from __future__ import annotations

import gc
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle
from typing import Any

from engram_exp.machine.disturbance import preemptions
from engram_exp.measure.clock import Clock, Sample
from engram_exp.measure.statistics import is_steady

log = logging.getLogger(__name__)

WINDOW_CALLS = 3  # a case is warm once the sum of its last calls ...
WARM_GAIN = 0.05  # ... is no more than this share smaller than that of the calls before them ...
WARMUP_SHARE = 0.05  # ... or this share of its budget is spent on as many calls as such a comparison needs ...
SLOW_WARMUP_SHARE = 0.25  # ... or this share on fewer
SM_CLOCK_EVERY_S = 0.05  # of a case, at most
QUICK_MS = 1.0  # a call that takes less feels what was done before it, unless a pause is between: of such, only ...
LOOKED_AT_EVERY = 8  # ... one sample in so many is prepared and looked at, and preemptions are read as seldom


Call = Callable[[], object]


@dataclass
class Case:
    """Something to time.

    Args:
        name: as the CSV calls it.
        calls: one for each of the inputs that rotate through the iterations.
        uses_device: whether it leaves work on the device.
        before: is given the call of a sample before it is timed.
        behind: is given the call and what it returned, behind a sample; raises if that is not what it should be. Of a
            quick case without pauses, one sample in eight is treated so.
        times: how often a call does what a sample is of.
        may_be_quick: False where the case is held against others: all of them are treated alike.
        restore: is given every call before anything else, those of a warm-up, too: puts back what calls change.
    """

    name: str
    calls: Sequence[Call]
    uses_device: bool
    before: Callable[[Any], None] | None = None
    behind: Callable[[Any, object], None] | None = None
    times: int = 1
    may_be_quick: bool = True
    restore: Callable[[Any], None] | None = None


@dataclass
class Timing:
    """What the loop found out about a case.

    steady: whether its samples neither fell nor rose, by `statistics.is_steady`; None where they are too few to tell.
    stop_reason: iterations, budget or error.
    samples, order: of each iteration, and its number among those of all cases as they were taken.
    spent_s: in its samples, and in the pauses before them.
    preempted: how often another process took a CPU from a thread of this one during the samples; of quick ones, the
        share that fell to them of the switches of some rounds.
    sm_clock_mhz_min: the lowest clock of the device that was seen behind a sample, in MHz; None without a device.
    error: what a call, or a look at what it returned, raised. It ended this case, and no other.
    """

    steady: bool | None = None
    stop_reason: str = ""
    samples: list[Sample] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    spent_s: float = 0.0
    preempted: int = 0
    sm_clock_mhz_min: int | None = None
    error: Exception | None = None


Progress = Callable[[str, dict[str, Timing]], None]


def measure(
    cases: Sequence[Case],
    clock: Clock,
    *,
    iterations: int,
    budget_s: float,
    seed: int,
    progress: Progress,
    pause_ms: float = 0.0,
) -> dict[str, Timing]:
    """Time every case. One that raises an exception is left with it; the others go on.

    Cases warm up one after the other, then give a sample each in every round, in a random order.

    Args:
        cases: of one run.
        clock: of its device.
        iterations: samples of a case, at most.
        budget_s: seconds of a case, pauses among them, at most; the iteration under way is finished.
        seed: of the order within each round.
        progress: called between samples with the case to come and what is known about all of them.
        pause_ms: that this process sleeps before every call, so that it finds caches and threads as a step of a model
            does that comes once in so long. Not part of any sample.
    """
    timings = {case.name: Timing() for case in cases}
    every = running = [
        _Running(case, calls, clock, iterations, budget_s, pause_ms / 1e3, timings[case.name])
        for case, calls in zip(cases, _apart(cases), strict=True)
    ]
    order, taken = random.Random(seed), count()
    gc.collect()
    gc.disable()
    try:
        for each in running:
            progress(each.case.name, timings)
            each.warm_up()
        log.info("warmed up; the first timed sample follows")
        for turn in count():
            running = [each for each in running if not each.timing.stop_reason]
            if not running:
                break
            order.shuffle(running)
            for each in running:
                progress(each.case.name, timings)
                each.take_sample(turn, next(taken))
    finally:
        gc.enable()
    for each in every:
        each.finish()
    return timings


def _apart(cases: Sequence[Case]) -> list[Sequence[Call]]:
    """The calls of each case, beginning where no other does: it would find in a cache what that has just read."""
    rotating = sum(len(case.calls) > 1 for case in cases)
    numbers = count()
    calls: list[Sequence[Call]] = []
    for case in cases:
        first = next(numbers) * len(case.calls) // rotating if len(case.calls) > 1 else 0
        calls.append([*case.calls[first:], *case.calls[:first]])
    return calls


@dataclass
class _Running:
    """One case on its way through the loop. What it raises ends up in its timing, and ends it.

    Args:
        case, calls: what to time, and its calls in the order in which they rotate.
        clock, iterations, budget_s: as `measure` has them.
        pause_s: before every call.
        timing: filled in.
    """

    case: Case
    calls: Sequence[Call]
    clock: Clock
    iterations: int
    budget_s: float
    pause_s: float
    timing: Timing
    next_clock_s: float = 0.0
    is_quick: bool = False
    switches: _Switches = field(default_factory=lambda: _Switches())

    def _fail(self, error: Exception) -> None:
        log.info("%s failed", self.case.name, exc_info=error)
        self.timing.error, self.timing.stop_reason = error, "error"

    def _restore(self, call: Call) -> None:
        if self.case.restore:
            self.case.restore(call)

    def _pause(self) -> None:
        if self.pause_s:
            time.sleep(self.pause_s)

    def warm_up(self) -> None:
        """Call the case until its times stop falling, at least six times. A share of the budget ends that, too, but not
        before the sixth call unless calls are so slow that there would be no budget left to speak of."""
        times_ms: list[float] = []
        try:
            for call in cycle(reversed(self.calls)):  # inputs that warmed up are those that timing comes to last
                self._restore(call)
                self._pause()
                times_ms.append(self.clock.time(call, uses_device=self.case.uses_device).wall_ms)
                enough = len(times_ms) >= 2 * WINDOW_CALLS
                spent = (sum(times_ms) / 1e3 + len(times_ms) * self.pause_s) / self.budget_s
                # A pause levels what was done before.
                self.is_quick = times_ms[-1] < QUICK_MS and not self.pause_s and self.case.may_be_quick
                if spent >= (WARMUP_SHARE if enough else SLOW_WARMUP_SHARE) or (enough and _is_warm(times_ms)):
                    break
        except Exception as error:
            self._fail(error)

    def take_sample(self, turn: int, number: int) -> None:
        """Take the sample of a round; `number` counts those of all cases."""
        # Little happens between quick samples: threads that wait for the next one fall asleep within microseconds.
        timing, case, call = self.timing, self.case, self.calls[turn % len(self.calls)]
        is_looked_at = not self.is_quick or len(timing.samples) % LOOKED_AT_EVERY == 0
        try:
            self._restore(call)
            if is_looked_at:
                self.switches.settle()
                if case.before:
                    case.before(call)
            self._pause()
            if is_looked_at:
                self.switches.watch()
            sample = self.clock.time(call, uses_device=case.uses_device)
            self.switches.spent_s += sample.wall_ms / 1e3
            if not self.is_quick:
                self.switches.settle()
            if is_looked_at and case.behind:
                case.behind(call, self.clock.result)
                if self.is_quick:
                    call()  # so that the next sample follows a call, and not a look
        except Exception as error:
            self._fail(error)
            return
        timing.samples.append(sample.of_one(case.times))
        timing.order.append(number)
        timing.spent_s += sample.wall_ms / 1e3 + self.pause_s
        if case.uses_device and time.perf_counter() >= self.next_clock_s:
            self._look_at_sm_clock()
        if len(timing.samples) >= self.iterations:
            timing.stop_reason = "iterations"
        elif timing.spent_s >= self.budget_s:
            timing.stop_reason = "budget"

    def finish(self) -> None:
        """Say of all samples what one alone does not tell."""
        self.switches.settle()
        self.timing.preempted = round(self.switches.of_case)
        self.timing.steady = is_steady([sample.wall_ms for sample in self.timing.samples])

    def _look_at_sm_clock(self) -> None:
        mhz, lowest = self.clock.sm_clock_mhz(), self.timing.sm_clock_mhz_min
        if mhz is not None:
            self.timing.sm_clock_mhz_min = mhz if lowest is None else min(mhz, lowest)
        self.next_clock_s = time.perf_counter() + SM_CLOCK_EVERY_S


@dataclass
class _Switches:
    """Preemptions of one case, read around a sample. Reading them slows quick ones down: theirs are read around some
    rounds of all cases, and its share of them is that of its samples in the time.

    spent_s: in its samples, since `watch`.
    of_case: preemptions so far.
    """

    spent_s: float = 0.0
    of_case: float = 0.0
    before: int = 0
    began_s: float = 0.0

    def watch(self) -> None:
        """Count from here on."""
        self.spent_s, self.before, self.began_s = 0.0, preemptions(), time.perf_counter()

    def settle(self) -> None:
        """Count until here, if anything was timed."""
        if self.spent_s:
            passed_s = max(time.perf_counter() - self.began_s, self.spent_s)
            self.of_case += (preemptions() - self.before) * self.spent_s / passed_s
            self.spent_s = 0.0


def _is_warm(times_ms: Sequence[float]) -> bool:
    earlier, latest = times_ms[-2 * WINDOW_CALLS : -WINDOW_CALLS], times_ms[-WINDOW_CALLS:]
    return sum(latest) >= (1 - WARM_GAIN) * sum(earlier)
