"""A model's step, built and verified: what its cases call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any

import torch

from engram_exp.config.derived import ids_of
from engram_exp.layer.tokens import Batch
from engram_exp.machine.placement import Placement, poison
from engram_exp.measure.clock import Clock
from engram_exp.measure.loop import Timing
from engram_exp.run.glance import Glance
from engram_exp.run.made_up import MadeUp
from engram_exp.run.parts import Parts
from engram_exp.run.rows import exposed_columns
from engram_exp.run.step_plan import StepPlan
from engram_exp.run.verify import Tasks, Verifier, require_close
from engram_exp.stage import Tensors
from engram_exp.strategy.schedule import Replay
from engram_exp.strategy.step import Compute, DeviceFetch, Fetch, Fetching, HostFetch, InPlace, InStep, StepIds, parted
from engram_exp.vocabulary import (
    BESIDE,
    DECODER,
    DEVICE,
    EACH,
    FETCH,
    HIGH,
    IN_STEP,
    ONE,
    READY,
    TENSORS_OF,
    TOKEN_IDS,
)

DECODER_SEED = 2**34  # added to the seed: no run draws its other weights from these
WINDOWS = 5  # steps whose windows are looked at

Run = Callable[[Batch], Tensors]


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
            _Layer(parts if layer is parts.plan else Parts(layer), plan, seed + number)
            for number, layer in plan.layers.items()
        ]
        self.batches = self._placed(parts)
        self.runs: dict[str, Run] = {}
        self.errors: dict[str, Exception] = {}

    def build(self) -> None:
        """Build the decoder and the layers, run each case, and compare it with the references."""
        config, plan = self.plan.plan.config, self.plan
        decoder = plan.shape.build(
            config.batch_size, self.plan.plan.dtype, config.seed + DECODER_SEED, Placement(self.device)
        )
        self.step = decoder.step(config.batch_size, config.seq_len)
        sampled = ids_of(config) == DEVICE
        parts = self.layers[0].parts
        self.ids = StepIds(
            self.batches[0], self.device, sampled=sampled, pin=lambda batch: parts.pinned([Batch(*map(_cpu, batch))])[0]
        )
        streams = self._streams()
        for layer, stream in zip(self.layers, streams, strict=True):
            layer.build(self.ids, stream, self._captured(None))
        fetches = [layer.fetch for layer in self.layers]
        self.runs[FETCH] = Fetching(self.ids, fetches)
        self._place_rows(self.batches[0])
        captured, numbers = self._captured(_pool(self.device)), list(plan.layers)
        computes = [layer.compute for layer in self.layers]
        in_place: list[Fetch] = [InPlace(layer.rows if layer.computes else ()) for layer in self.layers]
        nothing: list[Fetch] = [InPlace() for _ in self.layers]
        ready = [layer.compute if layer.computes else None for layer in self.layers]
        self.runs[DECODER] = InStep(self.step, self.ids, numbers, nothing, [None] * len(numbers), captured)
        self.runs[READY] = InStep(self.step, self.ids, numbers, in_place, ready, captured)
        self.runs[IN_STEP] = InStep(self.step, self.ids, numbers, fetches, computes, captured)
        self.looks = {case: _Looks(self, case) for case in plan.cases}
        for case in plan.cases:
            self._try(case, self._verify_first)

    @property
    def cases(self) -> tuple[str, ...]:
        """Those of a step that are timed."""
        return self.plan.cases

    def leaves_device_work(self, case: str) -> bool:
        """All of them use the device."""
        return True

    def look_at(self, case: str) -> _Looks:
        """What is looked at behind every sample of a case."""
        return self.looks[case]

    def columns(self, case: str, timings: Mapping[str, Timing]) -> dict[str, Any]:
        """What is told of a case beside its times: of the decoder, when layers are reached; of a step, what it takes
        longer than with rows in place."""
        if case == DECODER:
            return {"window_ms": " ".join(map("{}={:.4g}".format, self.plan.layers, self.windows))}
        return exposed_columns(timings) if case == IN_STEP else {}

    def calls(self, case: str) -> list[partial[Tensors]]:
        """What the iterations of a case call in turn: each batch has rows of its own."""
        return [partial(self.runs[case], batch) for batch in self.inputs(case)]

    def inputs(self, case: str) -> list[Batch]:
        """The batches of a case."""
        return self.batches if case in (FETCH, IN_STEP) else self.batches[:1]

    def verify_again(self) -> None:
        """Behind the last sample: look at many calls of each case; then compare one on ids, and on a hidden state, that
        were never shown before."""
        for verify in (self._look_again, self._verify_last):  # all looks first: what they look for is written over then
            for case in self.plan.cases:
                if case not in self.errors:
                    self._try(case, verify)
        self.windows = self._windows_ms()

    def _windows_ms(self) -> list[float]:
        """The time from the step's begin until each layer is reached, with no layer before it that has a table."""
        run = self.runs[DECODER]
        assert isinstance(run, InStep)
        times = [run.reached_ms(self.batches[0]) for _ in range(WINDOWS)]
        return [median(of_layer) for of_layer in zip(*times, strict=True)]

    def parts_of(self, case: str, result: Tensors) -> list[Tensors]:
        """What each layer made, of what a case returned."""
        made = list(result if case == FETCH else result[1:])
        lengths = [len(layer.made(case)) for layer in self.layers]
        assert sum(lengths) == len(made), (case, lengths, len(made))
        return [tuple(made.pop(0) for _ in range(length)) for length in lengths]

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

    def _look_again(self, case: str) -> None:
        self.looks[case].burst()

    def _verify_last(self, case: str) -> None:
        batch = self.batches[0]
        for tensor in self._run(case, batch):
            poison(tensor)
        for layer in self.layers:
            layer.renew(batch)
        self._require(case, batch)

    def _require(self, case: str, batch: Batch) -> None:
        if case == READY:
            self._place_rows(batch)
        result = self._run(case, batch)
        parts = self.parts_of(case, result)
        for layer, part in zip(self.layers, parts, strict=True):
            if tasks := layer.tasks_of(case):
                layer.verifier.require(case, tasks, batch, part, layer.verifier.positions())
        if case != FETCH:
            positions = self.layers[0].verifier.positions().to(self.device)
            got = result[0][positions].clone()
            ids = batch.ids.to(self.device)
            want = self.step.run(0, self.plan.shape.layers, self.step.begin(ids))[positions]
            tolerance = float(self.plan.plan.config.dtype.tolerance)
            require_close(f"{case}, decoder", got.cpu(), want.float().cpu(), tolerance)

    def _place_rows(self, batch: Batch) -> None:
        rows = self.parts_of(FETCH, self._run(FETCH, batch))
        for layer, tensors in zip(self.layers, rows, strict=True):
            layer.place(tensors)

    def _run(self, case: str, batch: Batch) -> Tensors:
        result = self.runs[case](batch)
        self.clock.synchronize()
        return result

    def _placed(self, parts: Parts) -> list[Batch]:
        """The run's batches, copied to where a step's ids are made."""
        if ids_of(parts.plan.config) == DEVICE:
            return [Batch(*(tensor.to(self.device, copy=True) for tensor in batch)) for batch in parts.batches]
        return parts.pinned(parts.batches)

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


class _Layer:
    """A layer with a table in a model's step.

    Args:
        parts: of its table.
        plan: of the step.
        seed: of the tokens that are compared.
    """

    def __init__(self, parts: Parts, plan: StepPlan, seed: int) -> None:
        self.parts, self.plan, self.verifier = parts, plan, Verifier(parts, seed)
        self.made_up = MadeUp(parts)
        self.computes = plan.in_place < len(plan.stages)
        self.rows: Tensors = ()

    def build(self, ids: StepIds, stream: torch.Stream | None, captured: Callable[[Compute], Compute]) -> None:
        """Build its stages."""
        stages = [self.parts.stage(stage) for stage in self.plan.stages]
        host, across, self.compute = parted(stages, self.plan.in_place)
        self.fetch: Fetch
        if host.stages:
            self.fetch = HostFetch(ids, host, across, stream)
        else:
            self.fetch = DeviceFetch(ids, captured(across), stream)

    def place(self, rows: Tensors) -> None:
        """Keep a copy of rows, at the place where `ready` reads them."""
        if not self.rows:
            self.rows = tuple(tensor.clone() for tensor in rows)
        for kept, tensor in zip(self.rows, rows, strict=True):
            kept.copy_(tensor)

    def made(self, case: str) -> tuple[str, ...]:
        """The names of the tensors that a case returns of it."""
        tasks = self.tasks_of(case)
        return TENSORS_OF.get(value := tasks[-1].load.stage.makes, (value,)) if tasks else ()

    def tasks_of(self, case: str) -> Tasks:
        """The stages that what a case returns of it follows from, from token ids on; none if it returns nothing."""
        layer = self.parts.plan
        if case == DECODER or (case == READY and not self.computes):
            return []
        return self.plan.tasks_of(FETCH if case == FETCH else IN_STEP, layer)

    def renew(self, batch: Batch) -> None:
        """Write ids and a hidden state that were never shown before."""
        self.made_up.renew(TOKEN_IDS, batch)
        for task in self.plan.tasks_of(IN_STEP, self.parts.plan):
            self.made_up.renew_brought(task)


class _Looks:
    """What is looked at behind every sample of a case: a few tokens of each layer.

    Args:
        bench: of the step.
        case: to look at.
    """

    def __init__(self, bench: StepBench, case: str) -> None:
        self.bench, self.case = bench, case
        self.glances: list[Glance | None] = [
            Glance(layer.verifier, case, tasks, bench.inputs(case)) if (tasks := layer.tasks_of(case)) else None
            for layer in bench.layers
        ]

    def before(self, call: partial[Tensors]) -> None:
        """As a glance does, for all layers."""
        for glance in self.glances:
            if glance:
                glance.before(call)

    def behind(self, call: partial[Tensors], result: object) -> None:
        """As a glance does, for all layers."""
        assert isinstance(result, tuple)
        for glance, part in zip(self.glances, self.bench.parts_of(self.case, result), strict=True):
            if glance:
                glance.behind(call, part)

    def burst(self) -> None:
        """As a glance does, for one layer after the other."""
        for number, glance in enumerate(self.glances):
            if glance:
                calls = [partial(self._of_layer, batch, number) for batch in self.bench.inputs(self.case)]
                glance.burst(calls, self.bench.clock.synchronize)

    def _of_layer(self, batch: Batch, number: int) -> Tensors:
        return self.bench.parts_of(self.case, self.bench.runs[self.case](batch))[number]


def _cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu()


def _pool(device: torch.device) -> object:
    """Memory that the graphs of a decoder's stream share: none of them runs beside another."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None
