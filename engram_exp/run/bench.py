"""The stages of a run, built and verified, with their inputs: what its cases call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from engram_exp.errors import ConfigError, RegistrationError, SkippedError
from engram_exp.layer.tokens import Batch
from engram_exp.machine.memory import peak_bytes
from engram_exp.measure.clock import Clock
from engram_exp.run.made_up import MadeUp
from engram_exp.run.parts import Parts
from engram_exp.run.verify import Verifier
from engram_exp.run.whole import WholeRun, build_whole_run
from engram_exp.stage import BuiltStage, PlannedStage, Stage, Tensors
from engram_exp.strategy.plan import made_up_inputs
from engram_exp.vocabulary import EMBEDDINGS, FULL, HASHING, HOST, KV, LINK, ROWS, TOKEN_IDS

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
        self.parts, self.plan = parts, parts.plan
        self.clock, self.verifier, self.made_up = clock, verifier, MadeUp(parts)
        self.stages: dict[str, BuiltStage] = {}
        self.inputs: dict[str, list[Tensors]] = {}  # of a case: one for each call that rotates
        self.results: dict[str, object] = {}  # what each case returned last
        self.made: dict[tuple[str, str], Tensors] = {(TOKEN_IDS, HOST): parts.batches[0]}  # by value and side
        self.whole_run: WholeRun | None = None
        self.whole_peaks: dict[str, int] = {}  # memory of the whole strategy, before more was built
        self.errors: dict[str, Exception] = {}

    def build(self) -> None:
        """Build every stage, run it on the first batch and compare it with the reference; then the whole strategy on
        another batch, so that no stage can pass by what it left behind.

        The whole is built as soon as row ids are known to be right: stages that only single cases need, such as those
        of whole batches beside a pipeline's, are not in its memory then.

        Raises:
            ConfigError, SkippedError, RegistrationError: as components do.
        """
        alone = made_up_inputs(self.plan.built, self.plan.stages)
        first, later = self._in_order()
        for stage in first:
            self._build(stage, is_alone=stage in alone)
        if FULL in self.plan.cases:
            with self._failing(FULL):
                self._build_whole([stage.name for stage in first])
        for stage in later:
            self._build(stage, is_alone=stage in alone)
        if self.whole_run:
            with self._failing(FULL):
                self._verify_whole()
        for case in self.plan.cases:
            if case not in self.errors:
                self._prepare(case)

    def calls(self, case: str) -> list[partial[Tensors]]:
        """What the iterations of a case call in turn. Inputs rotate where they decide which table rows are touched; the
        time of other stages does not depend on the values that they read."""
        run: Any = self.whole_run if case == FULL else self.stages[case].run
        return [partial(run, tensors) for tensors in self.inputs[case]]

    def leaves_device_work(self, case: str) -> bool:
        """Whether a case uses the device."""
        return case == FULL or self.stages[case].planned.side != HOST

    def poison(self, case: str, positions: torch.Tensor | None = None) -> None:
        """Overwrite what a case returned last, at some tokens or whole."""
        if case in self.results:
            self.verifier.poison(self._makes(case), self.results[case], positions)

    def check(self, case: str, call: partial[Tensors], result: object, positions: torch.Tensor) -> None:
        """Compare what a call returned, at some tokens.

        Raises:
            MismatchError: it differs from the reference.
        """
        self.results[case] = result
        task = None if case == FULL else self.plan.task(self.stages[case].planned)
        self.verifier.require(case, task, call.args[0], result, positions)

    def verify_again(self) -> None:
        """Behind the last sample: write what was never shown before to where the first call of each case reads, poison
        what it returned, call it and compare, at other tokens than before."""
        for case in self.plan.cases:
            if case not in self.errors:
                with self._failing(case):
                    call = self.calls(case)[0]
                    self.made_up.renew(self._needs(case), call.args[0])
                    self.poison(case)
                    result = call()
                    self.clock.synchronize()
                    self.check(case, call, result, self.verifier.positions())

    def named_tensors(self) -> dict[str, torch.Tensor]:
        """What the built stages make of the first batch: token_ids, history, row_ids, stored_rows (fp8), embeddings,
        keys, value."""
        batch = self.parts.batches[0]
        tensors: dict[str, torch.Tensor] = {"token_ids": batch.ids, "history": batch.history}
        names = {ROWS: ("stored_rows",), KV: ("keys", "value")}
        if not any(stage.makes == EMBEDDINGS for stage in self.plan.stages):
            names[ROWS] = (EMBEDDINGS,)
        flowing: Tensors = batch
        for stage in self.plan.stages:
            if stage.name not in self.stages:
                break
            flowing = self._run(self.stages[stage.name], flowing)
            if stage.needs != stage.makes:
                tensors.update(zip(names.get(stage.makes, (stage.makes,)), flowing, strict=True))
        if self.whole_run:
            tensors.update(zip(names[KV], self.whole_run(batch), strict=True))
            self.clock.synchronize()
        return {name: tensor.cpu().clone().contiguous() for name, tensor in tensors.items()}

    def _in_order(self) -> tuple[list[PlannedStage], list[PlannedStage]]:
        """The stages that the whole strategy is built from, or row ids are checked with; and the others."""
        of_whole = () if self.plan.cuts is not None else self.plan.stages
        first = [stage for stage in self.plan.built if stage.name == HASHING.name or stage in of_whole]
        return first, [stage for stage in self.plan.built if stage not in first]

    @contextmanager
    def _failing(self, case: str) -> Iterator[None]:
        """Whatever is raised here is the end of this case alone, unless nothing could be timed behind it."""
        try:
            yield
        except OF_THE_RUN:
            raise
        except Exception as error:
            self.errors[case] = error

    def _build(self, stage: PlannedStage, *, is_alone: bool) -> None:
        with self._failing(stage.name):
            built = self.parts.stage(stage)
            maker = next((other for other in self.plan.stages if other.makes == stage.needs), None)
            if built.kind.rotates and maker and maker.name in self.errors:
                raise self.errors[maker.name]  # no made-up rows would be as near to each other as real ones
            made = None if is_alone else self.made.get((stage.needs, self._side(stage.read_from)))
            inputs = self.made_up.input_of(stage) if made is None else made
            self.inputs[stage.name] = [inputs]
            result = self._run(built, inputs)
            self.stages[stage.name], self.results[stage.name] = built, result
            self.verifier.require(stage.name, self.plan.task(stage), inputs, result, self._positions(built.kind))
            if stage in self.plan.stages:
                self.made[stage.makes, self._side(stage.side)] = result

    def _build_whole(self, needed: Sequence[str]) -> None:
        parts = self.parts
        for name in needed:
            if name in self.errors:
                raise self.errors[name]
        self.whole_run = build_whole_run(parts, self.stages)
        upload = self.stages.get(self.plan.stages[0].name)
        if upload and upload.planned.place == LINK:
            for batch in parts.batches:  # it works out how to copy from each when it first sees it
                self._run(upload, batch)
        self.results[FULL] = self.whole_run(parts.batches[0])  # no more: other rows must not be in a cache yet
        self.clock.synchronize()
        self.whole_peaks = peak_bytes(self.plan.device)

    def _verify_whole(self) -> None:
        assert self.whole_run is not None
        first = self.parts.batches[0]
        shifted = Batch((first.ids + 1) % self.parts.compression.vocab_size, first.history)
        (batch,) = self.parts.pinned([shifted])
        self.results[FULL] = self.whole_run(first)
        self.clock.synchronize()
        self.poison(FULL)
        result = self.whole_run(batch)
        self.clock.synchronize()
        self.verifier.require(FULL, None, batch, result, self.verifier.positions())

    def _prepare(self, case: str) -> None:
        """What each call of a case reads."""
        batches: list[Tensors] = list(self.parts.batches)
        if case == FULL:
            self.inputs[FULL] = batches
        elif self.stages[case].kind.rotates:
            self.inputs[case] = [self._flow_to(self.stages[case].planned, batch) for batch in batches]

    def _flow_to(self, stage: PlannedStage, batch: Tensors) -> Tensors:
        """A copy of what a stage of the strategy reads for a batch; token ids where they are, if they are there."""
        device = self.plan.memory(stage.read_from).device
        if stage.needs == TOKEN_IDS:
            return tuple(tensor.to(device) for tensor in batch)
        for earlier in self.plan.stages[: self.plan.stages.index(stage)]:
            batch = self._run(self.stages[earlier.name], batch)
        return tuple(tensor.clone() for tensor in batch)

    def _run(self, stage: BuiltStage, tensors: Tensors) -> Tensors:
        result = stage.run(tensors)
        self.clock.synchronize()  # the next call may overwrite what this one still reads
        return result

    def _positions(self, kind: type[Stage]) -> torch.Tensor:
        return torch.arange(self.plan.tokens) if kind.compares_all else self.verifier.positions()

    def _side(self, side: str) -> str:
        """Without a link, both sides are the host's memory."""
        return side if self.plan.has_link else HOST

    def _needs(self, case: str) -> str:
        return TOKEN_IDS if case == FULL else self.stages[case].planned.needs

    def _makes(self, case: str) -> str:
        return KV if case == FULL else self.stages[case].planned.makes
