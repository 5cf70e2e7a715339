"""The stages of a run, built and verified, with their inputs: what its cases call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from engram_exp.errors import ConfigError, RegistrationError, SkippedError
from engram_exp.layer.tokens import Batch
from engram_exp.machine.memory import peak_bytes
from engram_exp.machine.placement import poison
from engram_exp.measure.clock import Clock
from engram_exp.measure.loop import Case
from engram_exp.run.batches import pinned
from engram_exp.run.glance import Glance
from engram_exp.run.graph_calls import Graphs, graph_calls_of
from engram_exp.run.kinds import KINDS
from engram_exp.run.made_up import MadeUp
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
from engram_exp.run.verify import Verifier, judge_of
from engram_exp.run.whole import ChunkStages, WholeRun, build_whole_run
from engram_exp.stage import BuiltStage, PlannedStage, Tensors
from engram_exp.strategy.plan import made_up_inputs
from engram_exp.vocabulary import HASHING, HOST, LINK, TOKEN_IDS, WHOLES

ROTATING = [name for name, kind in KINDS.items() if kind.rotates]  # steps whose time depends on what they read
OF_THE_RUN = (ConfigError, SkippedError, RegistrationError)  # errors that leave nothing to time


class Bench:
    """What is timed, and what it reads.

    A stage reads what the stage before it left behind, or made-up input where that one is not built. A case that cannot
    be built, or is wrong, leaves the others: `errors` says why, by case.

    Args:
        parts: of the run.
        clock: of its device.
        verifier: of its results.
    """

    def __init__(self, parts: Parts, clock: Clock, verifier: Verifier) -> None:
        self.parts, self.plan, self.ranks = parts, parts.plan, parts.plan.ranks
        self.clock, self.verifier, self.made_up = clock, verifier, MadeUp(parts)
        self.stages: dict[str, BuiltStage] = {}
        self.inputs: dict[str, list[Tensors]] = {}  # of a case: one for each call that rotates
        self.made: dict[tuple[str, str], Tensors] = {(TOKEN_IDS, HOST): parts.batches[0]}  # by value and side
        self.last: dict[str, Tensors] = {}  # what each case returned last, before it was timed
        self.graphs = Graphs(self.plan.device)
        self.glances: dict[str, Glance] = {}
        self.chunks = ChunkStages(parts) if self.plan.cuts is not None else None
        self.whole_runs: dict[str, WholeRun] = {}
        self.whole_peaks: dict[str, dict[str, int]] = {}  # memory of a whole, before more was built
        self.errors: dict[str, Exception] = {}
        self.files = Files(disk_tables([parts]), self.plan.config.cache_state)

    def build(self) -> None:
        """Build every stage, run it on the first batch and compare it with the reference; then each whole on another
        batch, so that no stage can pass by what it left behind.

        A whole is built as soon as row ids are known to be right: stages that only other cases need, such as those of
        whole batches beside a pipeline's, are not in its memory then.

        Raises:
            ConfigError, SkippedError, RegistrationError: as components do.
        """
        alone = made_up_inputs(self.plan.built, self.plan.stages)
        for case in self.plan.wholes:
            for stage in self._built_before(case):
                self._build(stage, is_alone=stage in alone)
            with self._failing(case):
                self._build_whole(case)
        for stage in self._still_to_build():
            self._build(stage, is_alone=stage in alone)
        for case in self.whole_runs:
            with self._failing(case):
                self._require_right_rows(case)
                self._verify_whole(case)
        for case in self.cases:
            if case not in self.errors:
                with self._failing(case):
                    self._prepare(case)
        self._warm_rows()

    def capture(self) -> None:
        """Capture graphs of the cases that are timed so, when all that the run times is built: memory that they take is
        none of it."""
        for case in self.cases:
            if case not in self.errors and (calls := graph_calls_of(self.plan, case)):
                with self._failing(case):
                    timed = timed_calls(self._counting(case), self._all_calls(case))
                    self.graphs.capture(case, timed, calls, self.run_alone)
        if self.graphs.of_case:
            self._warm_rows()  # they have run

    def calls(self, case: str) -> list[partial[Tensors]]:
        """What the iterations of a case call in turn. Inputs rotate where they decide which table rows are touched; the
        time of other stages does not depend on the values that they read."""
        return self.graphs.of_case.get(case) or timed_calls(self._counting(case), self._all_calls(case))

    def leaves_device_work(self, case: str) -> bool:
        """Whether a case uses the device."""
        return case in WHOLES or self.stages[case].planned.side != HOST

    @property
    def cases(self) -> list[str]:
        """Those that were built."""
        return [*self.stages, *self.whole_runs]

    def columns(self, case: str, timings: object) -> dict[str, Any]:
        """What is told of a case beside its times."""
        looked_at = [self.glances[case]] if case in self.glances else []
        return {**self.whole_peaks.get(case, {}), **counted_columns(looked_at)}

    def timed(self, case: str) -> Case:
        """A case as it is timed, with a look behind every sample."""
        self.last.pop(case, None)  # what is kept beside what the strategy keeps would count as its memory
        looked_at = self.verifier, case, self.plan.tasks_of(case), self.inputs[case]
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
            with self._failing(case):
                # One by one, since of those of a graph only the last can be seen.
                glance.burst(self._all_calls(case) if case in self.graphs.of_case else self.calls(case), self.clock)
                self.files.look(case, self.clock)

    def verify_again(self) -> None:
        """When all cases have been looked at: write what was never shown before to where the first call of each reads,
        poison what it returned, call it and compare, at other tokens than before.

        A case of which another has made the rows that it reads is no better than that one.
        """
        for case in self.cases:
            if case in self.errors:
                continue
            with self._failing(case):
                self._require_right_rows(case)
                call, tasks = self.calls(case)[0], self.plan.tasks_of(case)
                for tensor in self.glances[case].last if case in self.glances else self.last[case]:
                    poison(tensor)
                self.ranks.draw_alike()  # ranks that ask for the same tokens go on doing so
                self.made_up.renew(tasks[0].load.stage.needs, call.args[0])
                for task in tasks:
                    self.made_up.renew_brought(task)
                result = self.run_alone(call)
                self.verifier.require(case, tasks, call.args[0], result, self.verifier.positions())
                if (lookup := self._counting(case)) and lookup.keeps_rows:
                    self._verify_kept(case, lookup, call, result)

    def _counting(self, case: str) -> Any:
        """The lookup that a case calls, if it counts; all cases share it. None: it calls none. Of a pipeline's chunks,
        each counts by itself, unless they all share the rows that they keep."""
        if case in WHOLES and self.chunks:
            of_chunks = counting_of([*self.chunks.of_batches, *self.chunks.built[0]])
            return of_chunks if of_chunks and of_chunks.keeps_rows else None
        names = [stage.name for stage in self.plan.whole(case)] if case in WHOLES else [case]
        return counting_of(self.stages[name] for name in names if name in self.stages)

    def _verify_kept(self, case: str, lookup: Any, call: partial[Tensors], result: object) -> None:
        """Compare the same call again, whose rows are in the cache by now, and all rows that are."""
        tasks = self.plan.tasks_of(case)
        for tensor in self.verifier.tensors_of(case, tasks, result):
            poison(tensor)
        self.verifier.require(case, tasks, call.args[0], self.run_alone(call), self.verifier.positions())
        require_kept(case, lookup, self.parts.table)

    def _warm_rows(self) -> None:
        """Let a cache of rows see the batches that it is to have seen."""
        right = (case for case in self.cases if case not in self.errors)
        case = next((case for case in right if self._counting(case)), None)
        if case is not None:
            with self._failing(case):
                warm(self._counting(case), self._all_calls(case), self.run_alone)

    def _all_calls(self, case: str) -> list[partial[Tensors]]:
        run: Any = self.whole_runs[case] if case in WHOLES else self.stages[case].run
        return [partial(run, tensors) for tensors in self.inputs[case]]

    def _still_to_build(self) -> list[PlannedStage]:
        return [stage for stage in self.plan.built if stage.name not in self.stages and stage.name not in self.errors]

    def _built_before(self, case: str) -> list[PlannedStage]:
        """The stages that a whole is built from, or row ids are checked with."""
        of_whole = () if self.plan.cuts is not None else self.plan.whole(case)
        return [stage for stage in self._still_to_build() if stage.name == HASHING.name or stage in of_whole]

    @contextmanager
    def _failing(self, case: str) -> Iterator[None]:
        """Whatever is raised here, on any rank, ends this case alone, unless nothing could be timed behind it."""
        failed = None
        try:
            yield
        except OF_THE_RUN:
            raise
        except Exception as error:
            failed = error
        if known := self.ranks.known(failed):
            self.errors.setdefault(case, known)

    def _build(self, stage: PlannedStage, *, is_alone: bool) -> None:
        with self._failing(stage.name):
            self._require_right_rows(stage.name)
            task, built = self.plan.task(stage), self.parts.stage(stage)
            self.stages[stage.name] = built
            made = None if is_alone else self.made.get((stage.needs, self._side(stage.read_from)))
            self.ranks.draw_alike()
            inputs = self.made_up.input_of(stage) if made is None else made
            self.inputs[stage.name] = [inputs]
            result = self.last[stage.name] = self.run_alone(partial(built.run, inputs))
            positions = torch.arange(self.plan.tokens) if judge_of(task).compares_all else self.verifier.positions()
            self.verifier.require(stage.name, [task], inputs, result, positions)
            if stage in self.plan.stages:
                self.made[stage.makes, self._side(stage.side)] = result

    def _require_right_rows(self, case: str) -> None:
        """A case that depends on which rows are asked for ends with the stages that ask for them: no made-up rows would
        be as near to each other as real ones."""
        names = [stage.name for stage in (self.plan.whole(case) if case in WHOLES else self.plan.stages)]
        before = names if case in WHOLES else names[: names.index(case)] if case in ROTATING else []
        for name in before:
            if name in self.errors:
                raise self.errors[name]

    def _build_whole(self, case: str) -> None:
        self._require_right_rows(case)
        batches = self.parts.batches
        run = self.whole_runs[case] = build_whole_run(self.parts, case, self.stages, self.chunks)
        first = [self.stages.get(self.plan.stages[0].name), *(self.chunks.of_batches[:1] if self.chunks else ())]
        for upload in (stage for stage in first if stage and stage.planned.is_upload):
            for batch in batches:  # it works out how to copy from each when it first sees it
                self.run_alone(partial(upload.run, batch))
        self.last[case] = self.run_alone(partial(run, batches[0]))  # of others, rows must not be in a cache yet
        self.whole_peaks[case] = peak_bytes(self.plan.device)

    def _verify_whole(self, case: str) -> None:
        first = self.parts.batches[0]
        shifted = Batch((first.ids + 1) % self.parts.hash.of_model.vocab_size, first.history)
        (batch,) = pinned(self.plan, [shifted])
        for tensor in self.last[case]:
            poison(tensor)
        result = self.last[case] = self.run_alone(partial(self.whole_runs[case], batch))
        self.verifier.require(case, self.plan.tasks_of(case), batch, result, self.verifier.positions())

    def _prepare(self, case: str) -> None:
        """What each call of a case reads."""
        batches: list[Tensors] = list(self.parts.batches)
        if case in WHOLES:
            self.inputs[case] = batches
        elif self.stages[case].kind.rotates:
            self.inputs[case] = [self._flow_to(self.stages[case].planned, batch) for batch in batches]

    def _flow_to(self, stage: PlannedStage, batch: Tensors) -> Tensors:
        """A copy of what a stage of the strategy reads for a batch; token ids where they are, if they are there."""
        device = self.plan.memory(stage.read_from).device
        if stage.needs == TOKEN_IDS:
            return tuple(tensor.to(device) for tensor in batch)
        for earlier in self.plan.stages[: self.plan.stages.index(stage)]:
            batch = self.run_alone(partial(self.stages[earlier.name].run, batch))
        placement = self.plan.memory(stage.read_from, crosses=stage.place == LINK)
        return tuple(placement.empty(*tensor.shape, dtype=tensor.dtype).copy_(tensor) for tensor in batch)

    def run_alone(self, call: partial[Tensors]) -> Tensors:
        """The result of a call, once it is there."""
        result = call()
        self.clock.synchronize()  # the next call may overwrite what this one still reads
        return result

    def _side(self, side: str) -> str:
        """Without a link, both sides are the host's memory."""
        return side if self.plan.has_link else HOST
