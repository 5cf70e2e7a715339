"""A model's step, built and verified: what its cases call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from engram_exp.measure.clock import Clock
from engram_exp.measure.loop import Case, Timing
from engram_exp.run.built import OF_THE_RUN
from engram_exp.run.exposed import exposed_columns, exposed_verdict, least_exposed
from engram_exp.run.on_disk import Files, disk_tables
from engram_exp.run.parts import Parts, parts_in_step
from engram_exp.run.row_cache import counted_columns
from engram_exp.run.step_caches import StepCaches
from engram_exp.run.step_layer import Looks, TableLayer, made_by
from engram_exp.run.step_plan import StepPlan
from engram_exp.run.step_runs import StepRuns, steps_before
from engram_exp.run.verify import require_close
from engram_exp.stage import Tensors
from engram_exp.strategy.step import InStep, Reached, Series
from engram_exp.vocabulary import DECODER, FETCH, IN_SERIES, IN_STEP, READY

WINDOWS = 5  # steps whose windows are looked at


class StepBench:
    """The cases of a model's step, and what they read. One that is wrong leaves the others: `errors` says why, by case.

    Args:
        parts: of the run.
        plan: of its step.
        clock: of its device.
        seed: of the tokens that are compared.

    reached: by case, when a step comes to each layer with a table.
    """

    def __init__(self, parts: Parts, plan: StepPlan, clock: Clock, seed: int) -> None:
        self.parts, self.plan, self.clock, self.ranks = parts, plan, clock, parts.plan.ranks
        self.layers = [
            TableLayer(of_layer, plan, seed + number)
            for number, of_layer in zip(plan.layers, parts_in_step(parts), strict=True)
        ]
        self.cases = plan.cases
        self.errors: dict[str, Exception] = {}
        self.reached: dict[str, list[Reached]] = {}
        self.files = Files(disk_tables(layer.parts for layer in self.layers), parts.plan.config.cache_state)

    def build(self) -> None:
        """Build the decoder and the layers, run each case, and compare it with the references.

        Raises:
            ConfigError, SkippedError, RegistrationError: as components do.
        """
        failed = None
        try:
            self.built = StepRuns(self.parts, self.plan, self.layers)
            self.caches = StepCaches(self.layers, self.built, self.clock)
            self.hidden = self.built.hidden(self.built.batches[0]).clone()
            self.looks = {case: self._looks(case) for case in self.cases}
        except OF_THE_RUN:
            raise
        except Exception as error:
            failed = error
        if known := self.ranks.known(failed):
            self.errors = dict.fromkeys(self.cases, known)
        for case in self._right():
            self._try(case, self._verify)
        for case in self._right():
            self._try(case, self.caches.warm)
        if self.plan.plan.device.type == "cuda":
            torch.cuda.empty_cache()  # of what ran without graphs

    def timed(self, case: str) -> Case:
        """A case as it is timed: `fetch` by itself, the others one step behind the other, as a server runs them."""
        look, run, last = self.looks[case], self.built.runs[case], self.caches.inputs(case)
        steps = self.plan.plan.config.steps_per_sample if case in IN_SERIES else 1
        before = steps_before(last, steps) if case == IN_STEP else lambda batch: [batch] * (steps - 1)
        # Of a sample's steps the last; the next sample goes on with the batch behind it.
        last = [last[(steps * (number + 1) - 1) % len(last)] for number in range(len(last))]
        calls = [partial(Series(run, before), batch) for batch in last]
        looks = self.ranks.agreed(look.before), self.ranks.agreed(look.behind)
        restore = self.ranks.agreed(self.caches.restore(case, before))
        timed = Case(case, calls, True, *looks, steps, may_be_quick=False, restore=restore)
        return self.files.timed(timed, self.plan.costs_of(case))

    def columns(self, case: str, timings: Mapping[str, Timing]) -> dict[str, Any]:
        """What is told of a case beside its times: when its layers are reached; of a step, what it takes longer than
        with rows in place, at best, too, and how long it waits for them; of what fetches rows, those that crossed the
        link, where they are counted."""
        found: dict[str, Any] = {}
        if case in self.reached:
            found["window_ms"] = self._by_layer([at.ms for at in self.reached[case]])
        if case == IN_STEP:
            found |= exposed_columns(timings)
            if IN_STEP in self.reached:
                found["waits_ms"] = self._by_layer([at.waits_ms for at in self.reached[IN_STEP]])
            windows_ms = [at.ms for at in self.reached.get(READY, ())]
            if windows_ms and (least := least_exposed(self.plan, windows_ms)):
                found |= {"exposed_limit_ms": least.ms, "exposed_limit_by": least.by}
                if READY in timings:
                    ready_ms = median(sample.wall_ms for sample in timings[READY].samples)
                    found |= exposed_verdict(ready_ms, found.get("exposed_ms_hi"), least)
        if case in self._right():
            found |= counted_columns(glance for _, glance in self.looks[case].glances)
        return found

    def _by_layer(self, times_ms: Sequence[float]) -> str:
        return " ".join(map("{}={:.4g}".format, self.plan.layers, times_ms))

    def look_again(self) -> None:
        """Behind the last sample: look at many calls of each case, and when steps reach the layers."""
        for case in self._right():
            self._try(case, lambda case: self.looks[case].burst(self.built.runs[case], self.clock))
        for case in self._right():
            self._try(case, lambda case: self.files.look(case, self.clock))
        for case in self._right():
            self._try(case, self._look_when_reached)

    def _look_when_reached(self, case: str) -> None:
        """When steps come to each layer, with rows that no step before them asked for."""
        step, batches = self.built.runs[case], self.caches.inputs(case)
        is_restored = self.files.tables or self.caches.are_restored(case)
        if not isinstance(step, InStep) or (case == IN_STEP and is_restored):
            return  # rows that come ahead are there; files and caches are not as they are in timed calls
        times = [step.reached(batches[number % len(batches)]) for number in range(WINDOWS)]
        by_layer = (zip(*of_layer, strict=True) for of_layer in zip(*times, strict=True))
        self.reached[case] = [Reached(*map(median, both)) for both in by_layer]

    def verify_again(self) -> None:
        """When all cases have been looked at: compare a call on ids, and on a hidden state, that were never shown."""
        for case in self._right():
            self.ranks.draw_alike()  # ranks that ask for the same tokens go on doing so
            for layer in self.layers:
                layer.renew(self.built.batches[0])
            self._try(case, self._verify)
        for case in self._right():
            self._try(case, self.caches.verify)

    def _right(self) -> list[str]:
        return [case for case in self.cases if case not in self.errors]

    def _try(self, case: str, verify: Callable[[str], None]) -> None:
        """Whatever is raised here, on any rank, ends this case alone."""
        failed = None
        try:
            verify(case)
        except Exception as error:
            failed = error
        if known := self.ranks.known(failed):
            self.errors[case] = known

    def _looks(self, case: str) -> Looks:
        inputs = self.caches.inputs(case)
        hidden = self.hidden if inputs[0] is self.built.batches[0] else self.built.hidden(inputs[0]).clone()
        return Looks(case, self.layers, inputs, None if case == FETCH else hidden)

    def _verify(self, case: str) -> None:
        """Compare what a case makes of the first batch."""
        built, batch = self.built, self.built.batches[0]
        hidden = None if case == FETCH else built.hidden(batch)  # at once: ranks run it together, whatever is wrong
        built.place_rows(batch)
        built.forget(case, batch)
        self.clock.synchronize()
        result: Tensors = built.runs[case](batch)
        self.clock.synchronize()
        for layer, made in zip(self.layers, made_by(self.layers, case, result), strict=True):
            if tasks := layer.tasks_of(case):
                layer.verifier.require(case, tasks, batch, made, layer.verifier.positions())
        if hidden is not None:
            positions = self.layers[0].verifier.positions().to(result[0].device)
            got, want = result[0][positions].cpu(), hidden[positions].float().cpu()
            require_close(f"{case}, {DECODER}", got, want, self.parts.reference.tolerance)
