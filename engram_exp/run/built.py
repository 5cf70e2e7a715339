"""The stages of a run and its wholes, built and verified, with what each reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from engram_exp.config.options import CPU
from engram_exp.errors import ConfigError, RegistrationError, SkippedError
from engram_exp.layer.tokens import Batch
from engram_exp.machine.memory import peak_bytes
from engram_exp.machine.placement import poison
from engram_exp.measure.clock import Clock
from engram_exp.run.batches import pinned
from engram_exp.run.kinds import KINDS
from engram_exp.run.made_up import MadeUp
from engram_exp.run.parts import Parts
from engram_exp.run.verify import Verifier, judge_of
from engram_exp.run.whole import ChunkStages, WholeRun, build_whole_run
from engram_exp.stage import BuiltStage, PlannedStage, Tensors
from engram_exp.strategy.plan import made_up_inputs
from engram_exp.vocabulary import HASHING, LINK, TOKEN_IDS, WHOLES

ROTATING = [name for name, kind in KINDS.items() if kind.rotates]  # steps whose time depends on what they read
OF_THE_RUN = (ConfigError, SkippedError, RegistrationError)  # errors that leave nothing to time


class BuiltCases:
    """What a run can time: stages and wholes, each right at least once.

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
        self.made: dict[tuple[str, torch.device], Tensors] = {(TOKEN_IDS, CPU): parts.batches[0]}  # by value and place
        self.last: dict[str, Tensors] = {}  # what each case returned last, before it was timed
        self.chunks = ChunkStages(parts) if self.plan.cuts is not None else None
        self.whole_runs: dict[str, WholeRun] = {}
        self.whole_peaks: dict[str, dict[str, int]] = {}  # memory of a whole, before more was built
        self.errors: dict[str, Exception] = {}

    def build(self) -> None:
        """Build every stage, run it on the first batch and compare it with the reference; then each whole on another
        batch, so that no stage can pass by what it left behind.

        A whole is built as soon as row ids are known to be right: stages that only other cases need, such as those of
        whole batches beside a pipeline's, are not in its memory then.

        Raises:
            ConfigError, SkippedError, RegistrationError: as components do.
        """
        for case in self.plan.wholes:
            of_whole = () if self.plan.cuts is not None else self.plan.whole(case)
            self._build_stages(stage for stage in self.plan.built if stage.name == HASHING.name or stage in of_whole)
            with self.failing(case):
                self._build_whole(case)
        self._build_stages(self.plan.built)
        for case in self.whole_runs:
            with self.failing(case):
                self.require_right_rows(case)
                self._verify_whole(case)
        for case in self.cases:
            if case not in self.errors:
                with self.failing(case):
                    self._prepare(case)

    @property
    def cases(self) -> list[str]:
        """Those that were built."""
        return [*self.stages, *self.whole_runs]

    def all_calls(self, case: str) -> list[partial[Tensors]]:
        """The calls of a case, one for each input."""
        run: Any = self.whole_runs[case] if case in WHOLES else self.stages[case].run
        return [partial(run, tensors) for tensors in self.inputs[case]]

    def run_alone(self, call: partial[Tensors]) -> Tensors:
        """The result of a call, once it is there."""
        result = call()
        self.clock.synchronize()  # the next call may overwrite what this one still reads
        return result

    @contextmanager
    def failing(self, case: str) -> Iterator[None]:
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

    def require_right_rows(self, case: str) -> None:
        """A case that depends on which rows are asked for ends with the stages that ask for them: no made-up rows would
        be as near to each other as real ones."""
        names = [stage.name for stage in (self.plan.whole(case) if case in WHOLES else self.plan.stages)]
        before = names if case in WHOLES else names[: names.index(case)] if case in ROTATING else []
        for name in before:
            if name in self.errors:
                raise self.errors[name]

    def _build_stages(self, stages: Iterable[PlannedStage]) -> None:
        """Build those of some stages that are not built yet."""
        alone = made_up_inputs(self.plan.built, self.plan.stages)
        for stage in stages:
            if stage.name not in self.stages and stage.name not in self.errors:
                self._build_stage(stage, is_alone=stage in alone)

    def _build_stage(self, stage: PlannedStage, *, is_alone: bool) -> None:
        with self.failing(stage.name):
            self.require_right_rows(stage.name)
            task, built = self.plan.task(stage), self.parts.stage(stage)
            self.stages[stage.name] = built
            made = None if is_alone else self.made.get((stage.needs, self.plan.memory(stage.read_from).device))
            self.ranks.draw_alike()
            inputs = self.made_up.input_of(stage) if made is None else made
            self.inputs[stage.name] = [inputs]
            result = self.last[stage.name] = self.run_alone(partial(built.run, inputs))
            positions = torch.arange(self.plan.tokens) if judge_of(task).compares_all else self.verifier.positions()
            self.verifier.require(stage.name, [task], inputs, result, positions)
            if stage in self.plan.stages:
                self.made[stage.makes, self.plan.memory(stage.side).device] = result

    def _build_whole(self, case: str) -> None:
        self.require_right_rows(case)
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
