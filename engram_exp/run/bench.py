"""What is timed of a run, and how it is looked at."""

from __future__ import annotations

from functools import partial
from typing import Any

from engram_exp.machine.placement import poison
from engram_exp.measure.clock import Clock
from engram_exp.measure.loop import Case
from engram_exp.run.built import BuiltCases
from engram_exp.run.glance import Glance
from engram_exp.run.graph_calls import Graphs, graph_calls_of
from engram_exp.run.on_disk import Files, disk_tables
from engram_exp.run.parts import Parts
from engram_exp.run.row_cache import (
    CountingGlance,
    counted_columns,
    counting_of,
    require_kept,
    restore_of,
    timed_calls,
    warm,
)
from engram_exp.run.verify import Verifier
from engram_exp.stage import Tensors
from engram_exp.vocabulary import HOST, WHOLES


class Bench:
    """The cases of a run as they are timed: warm or cold, in graphs or not, with a look behind samples, and verified
    once more. `errors` says why a case is not, or was wrong.

    Args:
        parts: of the run.
        clock: of its device.
        verifier: of its results.
    """

    def __init__(self, parts: Parts, clock: Clock, verifier: Verifier) -> None:
        self.parts, self.plan, self.ranks = parts, parts.plan, parts.plan.ranks
        self.clock, self.verifier = clock, verifier
        self.built = BuiltCases(parts, clock, verifier)
        self.cases: list[str] = []  # once they are built
        self.errors = self.built.errors
        self.graphs = Graphs(self.plan.device)
        self.glances: dict[str, Glance] = {}
        self.files = Files(disk_tables([parts]), self.plan.config.cache_state)

    def build(self) -> None:
        """Build and verify what is timed, and show it what it is to have seen.

        Raises:
            ConfigError, SkippedError, RegistrationError: as components do.
        """
        self.built.build()
        self.cases = self.built.cases
        self._warm_rows()

    def capture(self) -> None:
        """Capture graphs of the cases that are timed so, when all that the run times is built: memory that they take is
        none of it."""
        for case in self.cases:
            if case not in self.errors and (calls := graph_calls_of(self.plan, case)):
                with self.built.failing(case):
                    timed = timed_calls(self._counting(case), self.built.all_calls(case))
                    self.graphs.capture(case, timed, calls, self.built.run_alone)
        if self.graphs.of_case:
            self._warm_rows()  # they have run

    def calls(self, case: str) -> list[partial[Tensors]]:
        """What the iterations of a case call in turn. Inputs rotate where they decide which table rows are touched; the
        time of other stages does not depend on the values that they read."""
        return self.graphs.of_case.get(case) or timed_calls(self._counting(case), self.built.all_calls(case))

    def leaves_device_work(self, case: str) -> bool:
        """Whether a case uses the device."""
        return case in WHOLES or self.built.stages[case].planned.side != HOST

    def columns(self, case: str, timings: object) -> dict[str, Any]:
        """What is told of a case beside its times. Unlike of a step, none of it follows from the times of all cases."""
        looked_at = [self.glances[case]] if case in self.glances else []
        return {**self.built.whole_peaks.get(case, {}), **counted_columns(looked_at)}

    def timed(self, case: str) -> Case:
        """A case as it is timed, with a look behind every sample."""
        self.built.last.pop(case, None)  # what is kept beside what the strategy keeps would count as its memory
        looked_at = self.verifier, case, self.plan.tasks_of(case), self.built.inputs[case]
        lookup = self._counting(case)
        look = self.glances[case] = CountingGlance(lookup, *looked_at) if lookup else Glance(*looked_at)
        calls, uses_device = self.calls(case), self.leaves_device_work(case)
        is_graph = case in self.graphs.of_case
        restore = restore_of([lookup], self._warm_rows)
        looks = self.ranks.agreed(look.before), self.ranks.agreed(look.behind)
        restore = partial(self.graphs.prepare, restore) if is_graph else restore
        times = self.plan.config.graph_calls if is_graph else 1
        timed = Case(case, calls, uses_device, *looks, times, restore=restore)
        return self.files.timed(timed, self.plan.tasks_of(case))

    def look_again(self) -> None:
        """Behind the last sample: look at many calls of each case."""
        for case, glance in self.glances.items():
            if case in self.errors:
                continue
            with self.built.failing(case):
                # One by one, since of those of a graph only the last can be seen.
                calls = self.built.all_calls(case) if case in self.graphs.of_case else self.calls(case)
                glance.burst(calls, self.clock)
                self.files.look(case, self.clock)

    def verify_again(self) -> None:
        """When all cases have been looked at: write what was never shown before to where the first call of each reads,
        poison what it returned, call it and compare, at other tokens than before.

        A case of which another has made the rows that it reads is no better than that one.
        """
        for case in self.cases:
            if case in self.errors:
                continue
            with self.built.failing(case):
                self.built.require_right_rows(case)
                call, tasks = self.calls(case)[0], self.plan.tasks_of(case)
                for tensor in self.glances[case].last if case in self.glances else self.built.last[case]:
                    poison(tensor)
                self.ranks.draw_alike()  # ranks that ask for the same tokens go on doing so
                self.built.made_up.renew(tasks[0].load.stage.needs, call.args[0])
                for task in tasks:
                    self.built.made_up.renew_brought(task)
                result = self.built.run_alone(call)
                self.verifier.require(case, tasks, call.args[0], result, self.verifier.positions())
                if (lookup := self._counting(case)) and lookup.keeps_rows:
                    self._verify_kept(case, lookup, call, result)

    def _counting(self, case: str) -> Any:
        """The lookup that a case calls, if it counts; all cases share it. None: it calls none. Of a pipeline's chunks,
        each counts by itself, unless they all share the rows that they keep."""
        if case in WHOLES and self.built.chunks:
            of_chunks = counting_of([*self.built.chunks.of_batches, *self.built.chunks.built[0]])
            return of_chunks if of_chunks and of_chunks.keeps_rows else None
        names = [stage.name for stage in self.plan.whole(case)] if case in WHOLES else [case]
        return counting_of(self.built.stages[name] for name in names if name in self.built.stages)

    def _verify_kept(self, case: str, lookup: Any, call: partial[Tensors], result: object) -> None:
        """Compare the same call again, whose rows are in the cache by now, and all rows that are."""
        tasks = self.plan.tasks_of(case)
        for tensor in self.verifier.tensors_of(case, tasks, result):
            poison(tensor)
        self.verifier.require(case, tasks, call.args[0], self.built.run_alone(call), self.verifier.positions())
        require_kept(case, lookup, self.parts.table)

    def _warm_rows(self) -> None:
        """Let a cache of rows see the batches that it is to have seen."""
        right = (case for case in self.cases if case not in self.errors)
        case = next((case for case in right if self._counting(case)), None)
        if case is not None:
            with self.built.failing(case):
                warm(self._counting(case), self.built.all_calls(case), self.built.run_alone)
