"""A model's step, built and verified: what its cases call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch

from engram_exp.config.derived import ids_of
from engram_exp.layer.tokens import Batch
from engram_exp.machine.placement import Placement, poison
from engram_exp.measure.clock import Clock
from engram_exp.measure.loop import Timing
from engram_exp.run.bench import OF_THE_RUN
from engram_exp.run.parts import Parts
from engram_exp.run.rows import exposed_columns
from engram_exp.run.step_layer import Looks, Run, TableLayer, made_by
from engram_exp.run.step_plan import StepPlan
from engram_exp.run.verify import require_close
from engram_exp.stage import Tensors
from engram_exp.strategy.schedule import Replay
from engram_exp.strategy.step import Ahead, Compute, Fetch, Fetching, InPlace, InStep, StepIds
from engram_exp.vocabulary import BESIDE, DECODER, DEVICE, EACH, FETCH, HIGH, IN_STEP, ONE, READY, THIS_STEP

DECODER_SEED = 2**34  # added to the seed: no run draws its other weights from these
WINDOWS = 5  # steps whose windows are looked at


class StepBench:
    """The cases of a model's step, and what they read. One that is wrong leaves the others: `errors` says why, by case.

    Args:
        parts: of the run.
        plan: of its step.
        clock: of its device.
        seed: of the tokens that are compared.
    """

    def __init__(self, parts: Parts, plan: StepPlan, clock: Clock, seed: int) -> None:
        self.plan, self.clock, self.device = plan, clock, parts.plan.device
        self.layers = [
            TableLayer(parts if layer is parts.plan else Parts(layer), plan, seed + number)
            for number, layer in plan.layers.items()
        ]
        self.batches = self._placed(parts)
        self.runs: dict[str, Run] = {}
        self.errors: dict[str, Exception] = {}
        self.windows: list[float] = []  # ms from a step's begin until each layer is reached

    def build(self) -> None:
        """Build the decoder and the layers, run each case, and compare it with the references.

        Raises:
            ConfigError, SkippedError, RegistrationError: as components do.
        """
        try:
            self._build()
        except OF_THE_RUN:
            raise
        except Exception as error:
            self.errors = dict.fromkeys(self.cases, error)
            return
        for case in self.cases:
            self._try(case, self._verify_first)

    def _build(self) -> None:
        config, shape = self.plan.plan.config, self.plan.shape
        decoder = shape.build(
            config.batch_size, self.plan.plan.dtype, config.seed + DECODER_SEED, Placement(self.device)
        )
        self.step, self.ids = decoder.step(config.batch_size, config.seq_len), self._ids()
        self.fetches = self._fetches(self.ids)
        self.runs[FETCH] = Fetching(self.ids, self.fetches)
        self._place_rows(self.batches[0])
        self.runs |= self._runs()
        self.looks = {case: Looks(case, self.layers, self.inputs(case)) for case in self.cases}

    @property
    def cases(self) -> tuple[str, ...]:
        """Those of a step that are timed."""
        return self.plan.cases

    def leaves_device_work(self, case: str) -> bool:
        """All of them use the device."""
        return True

    def look_at(self, case: str) -> Looks:
        """What is looked at behind every sample of a case."""
        return self.looks[case]

    def columns(self, case: str, timings: Mapping[str, Timing]) -> dict[str, Any]:
        """What is told of a case beside its times: of the decoder, when layers are reached; of a step, what it takes
        longer than with rows in place."""
        if case == DECODER and self.windows:
            return {"window_ms": " ".join(map("{}={:.4g}".format, self.plan.layers, self.windows))}
        return exposed_columns(timings) if case == IN_STEP else {}

    def calls(self, case: str) -> list[partial[Tensors]]:
        """What the iterations of a case call in turn: each batch has rows of its own."""
        return [partial(self.runs[case], batch) for batch in self.inputs(case)]

    def inputs(self, case: str) -> list[Batch]:
        """The batches of a case."""
        return self.batches if case in (FETCH, IN_STEP) else self.batches[:1]

    def look_again(self) -> None:
        """Behind the last sample: look at many calls of each case, and when the decoder alone reaches the layers."""
        for case in self._right():
            self._try(case, lambda case: self.looks[case].burst(self.runs[case], self.clock.synchronize))
        if DECODER in self._right():
            self.windows = self._windows_ms()

    def verify_again(self) -> None:
        """When all cases have been looked at: compare a call on ids, and on a hidden state, that were never shown."""
        for case in self._right():
            self._try(case, self._verify_last)

    def _right(self) -> list[str]:
        return [case for case in self.cases if case not in self.errors]

    def _windows_ms(self) -> list[float]:
        """The time from the step's begin until each layer is reached, with no layer before it that has a table."""
        run = self.runs[DECODER]
        assert isinstance(run, InStep)
        times = [run.reached_ms(self.batches[0]) for _ in range(WINDOWS)]
        return [median(of_layer) for of_layer in zip(*times, strict=True)]

    def _try(self, case: str, verify: Callable[[str], None]) -> None:
        try:
            verify(case)
        except Exception as error:
            self.errors[case] = error

    def _verify_first(self, case: str) -> None:
        batch = self.batches[0]
        for tensor in self._run(case, batch):
            poison(tensor)
        self._require(case, batch)

    def _verify_last(self, case: str) -> None:
        batch = self.batches[0]
        for tensor in self._run(case, batch):
            poison(tensor)
        for layer in self.layers:
            layer.renew(batch)
        run = self.runs[case]
        if isinstance(run, Ahead):
            run.forget()
        self._require(case, batch)

    def _require(self, case: str, batch: Batch) -> None:
        if case == READY:
            self._place_rows(batch)
        result = self._run(case, batch)
        for layer, made in zip(self.layers, made_by(self.layers, case, result), strict=True):
            if tasks := layer.tasks_of(case):
                layer.verifier.require(case, tasks, batch, made, layer.verifier.positions())
        if case != FETCH:
            positions = self.layers[0].verifier.positions().to(self.device)
            got = result[0][positions].clone()
            ids = batch.ids.to(self.device)
            want = self.step.run(0, self.plan.shape.layers, self.step.begin(ids))[positions]
            tolerance = float(self.plan.plan.config.dtype.tolerance)
            require_close(f"{case}, decoder", got.cpu(), want.float().cpu(), tolerance)

    def _runs(self) -> dict[str, Run]:
        """What the cases with a decoder call. Their graphs share memory: none of them runs beside another."""
        pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        layers, nothing = self.layers, InPlace()

        def in_step(fetches: Sequence[Fetch], computes: Sequence[Compute | None]) -> InStep:
            return InStep(self.step, self.ids, list(self.plan.layers), fetches, computes, self._captured(pool))

        computes = [layer.compute for layer in layers]
        in_place = [InPlace(layer.rows) if layer.computes else nothing for layer in layers]
        runs: dict[str, Run] = {
            DECODER: in_step([nothing for _ in layers], [None for _ in layers]),
            READY: in_step(in_place, [layer.compute if layer.computes else None for layer in layers]),
        }
        if self.plan.plan.config.prefetch.lead == THIS_STEP:
            return {**runs, IN_STEP: in_step(self.fetches, computes)}
        places = [tuple(tensor.clone() for tensor in layer.rows) for layer in layers]
        following = dict(zip(map(id, self.batches), [*self.batches[1:], self.batches[0]], strict=True))
        step, coming = in_step([InPlace(rows) for rows in places], computes), self._ids()
        ahead = Ahead(step, places, coming, self._fetches(coming), lambda batch: following[id(batch)])
        return {**runs, IN_STEP: ahead}

    def _place_rows(self, batch: Batch) -> None:
        rows = made_by(self.layers, FETCH, self._run(FETCH, batch))
        for layer, tensors in zip(self.layers, rows, strict=True):
            layer.place(tensors)

    def _run(self, case: str, batch: Batch) -> Tensors:
        result = self.runs[case](batch)
        self.clock.synchronize()
        return result

    def _ids(self) -> StepIds:
        """Token ids of a step."""

        def pin(batch: Batch) -> Batch:
            return self.layers[0].parts.pinned([Batch(*(tensor.cpu() for tensor in batch))])[0]

        sampled = ids_of(self.plan.plan.config) == DEVICE
        return StepIds(self.batches[0], self.device, sampled=sampled, pin=pin)

    def _placed(self, parts: Parts) -> list[Batch]:
        """The run's batches, copied to where a step's ids are made."""
        if ids_of(parts.plan.config) == DEVICE:
            return [Batch(*(tensor.to(self.device, copy=True) for tensor in batch)) for batch in parts.batches]
        return parts.pinned(parts.batches)

    def _fetches(self, ids: StepIds) -> list[Fetch]:
        """How the rows of all layers come, in buffers of their own."""
        captured = self._captured(None)
        return [layer.fetch(ids, stream, captured) for layer, stream in zip(self.layers, self._streams(), strict=True)]

    def _streams(self) -> list[torch.Stream | None]:
        """That each layer's rows are fetched on; None: the decoder's."""
        prefetch = self.plan.plan.config.prefetch
        if prefetch.where != BESIDE or self.device.type == "cpu":
            return [None for _ in self.layers]
        number = len(self.layers) if prefetch.streams == EACH else 1
        streams = [torch.Stream(device=self.device, priority=-(prefetch.priority == HIGH)) for _ in range(number)]
        return [streams[0 if prefetch.streams == ONE else n] for n in range(len(self.layers))]

    def _captured(self, pool: object) -> Callable[[Compute], Compute]:
        return partial(Replay, pool=pool) if self.device.type == "cuda" else lambda work: work
