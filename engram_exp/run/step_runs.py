"""What the cases of a model's step run, built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from engram_exp.config.derived import ids_of
from engram_exp.layer.tokens import Batch
from engram_exp.machine.placement import Placement, poison
from engram_exp.run.batches import pinned
from engram_exp.run.parts import Parts
from engram_exp.run.step_layer import How, Run, TableLayer
from engram_exp.run.step_plan import StepPlan
from engram_exp.stage import Tensors
from engram_exp.strategy.fetch import Compute, Fetch, InPlace, StepIds
from engram_exp.strategy.schedule import Replay, streams_of
from engram_exp.strategy.step import Ahead, Fetching, InStep
from engram_exp.vocabulary import BESIDE, DECODER, DEVICE, EACH, FETCH, HIGH, IN_STEP, LOW, READY, THIS_STEP

DECODER_SEED = 2**34  # added to the seed: no run draws its other weights from these
PRIORITIES = {LOW: 0, HIGH: -1}  # as PyTorch has them


class StepRuns:
    """The decoder, and the runs of all cases.

    Args:
        parts: of the run.
        plan: of its step.
        layers: with tables.

    batches: where a step's ids are made.
    runs: by case.
    """

    def __init__(self, parts: Parts, plan: StepPlan, layers: Sequence[TableLayer]) -> None:
        config = plan.plan.config
        self.plan, self.layers, self.device = plan, layers, plan.plan.device
        self.sampled = ids_of(config) == DEVICE
        self.batches = self._placed(parts.batches)
        decoder = plan.shape.build(
            config.batch_size, plan.plan.dtype, config.seed + DECODER_SEED, Placement(self.device), plan.plan.ranks
        )
        self.decoder, self.ids = decoder.step(config.batch_size, config.seq_len), self._ids()
        fetches = self._fetches(self.ids)
        self.runs: dict[str, Run] = {FETCH: Fetching(self.ids, fetches)}
        self.placing = Fetching(self.ids, [layer.fetch(READY, self.ids, self._how(None)) for layer in layers])
        self.place_rows(self.batches[0])
        self._build(fetches)

    def _build(self, fetches: Sequence[Fetch]) -> None:
        """All cases with a decoder. Their graphs share memory: none of them runs beside another."""
        pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None

        def in_step(fetches: Sequence[Fetch], computes: Sequence[Compute | None]) -> InStep:
            captured = self._captured(pool=pool)
            return InStep(self.decoder, self.ids, list(self.plan.layers), fetches, computes, captured)

        layers, nothing = self.layers, InPlace()
        computes = [layer.compute(IN_STEP) for layer in layers]
        self.alone = in_step([nothing for _ in layers], [None for _ in layers])
        self.runs[DECODER] = self.alone
        self.ahead: Ahead | None = None
        self.rows_of_step = Fetching(self.ids, fetches)
        places = self.rows_of_step.rows_of(self.batches[0])
        is_ahead = self.plan.plan.config.prefetch.lead != THIS_STEP
        if is_ahead:
            places = [tuple(map(torch.clone, rows)) for rows in places]
        step = in_step([InPlace(rows) for rows in places], computes)
        self.runs[IN_STEP] = self._ahead(step, places) if is_ahead else step.fed(fetches)
        if self.plan.is_alike:
            self.runs[READY] = step
            for layer, rows in zip(layers, places, strict=True):
                layer.places = rows
        else:
            in_place = [InPlace(layer.places) for layer in layers]
            self.runs[READY] = in_step(in_place, [layer.compute(READY) for layer in layers])

    def _ahead(self, step: InStep, places: Sequence[Tensors]) -> Ahead:
        """A step whose rows are fetched while the one before runs."""
        coming = self._ids()
        self.rows_of_step = Fetching(coming, self._fetches(coming, ahead=True))
        following = dict(zip(map(id, self.batches), [*self.batches[1:], self.batches[0]], strict=True))
        fetches = self.rows_of_step.fetches
        self.ahead = Ahead(step, places, coming, fetches, lambda batch: following[id(batch)])
        return self.ahead

    def place_rows(self, batch: Batch) -> None:
        """Put the rows of a batch where `ready` reads them."""
        rows = self.placing.rows_of(batch)
        for layer, tensors in zip(self.layers, rows, strict=True):
            layer.place(tensors)

    def forget(self, case: str, batch: Batch) -> None:
        """Poison what a case makes, and the rows that a step fetches: what is not computed anew shows."""
        for tensor in self.runs[case](batch):
            poison(tensor)
        if case == IN_STEP:
            for rows in self.rows_of_step.rows_of(batch):
                for tensor in rows:
                    poison(tensor)
        if self.ahead:
            self.ahead.forget()

    def hidden(self, batch: Batch) -> torch.Tensor:
        """The decoder's hidden state [T, C] behind a step on a batch, without cuts, graphs and tables."""
        begun = self.decoder.begin(batch.ids.to(self.device))
        return self.decoder.run(0, self.plan.shape.layers, begun)

    def _ids(self) -> StepIds:
        """Token ids of a step."""

        def pin(batch: Batch) -> Batch:
            return pinned(self.plan.plan, [Batch(*(tensor.cpu() for tensor in batch))])[0]

        return StepIds(self.batches[0], self.device, sampled=self.sampled, pin=pin)

    def _placed(self, batches: Sequence[Batch]) -> list[Batch]:
        """Copies of batches where a step's ids are made."""
        if self.sampled:
            return [Batch(*(tensor.to(self.device, copy=True) for tensor in batch)) for batch in batches]
        return pinned(self.plan.plan, batches)

    def _fetches(self, ids: StepIds, *, ahead: bool = False) -> list[Fetch]:
        """How the rows of all layers come."""
        return [layer.fetch(IN_STEP, ids, self._how(number), ahead=ahead) for number, layer in enumerate(self.layers)]

    def _how(self, number: int | None) -> How:
        """How rows are fetched, by the layer's number among those with tables; None: on the decoder's stream."""
        prefetch = self.plan.plan.config.prefetch
        priority = PRIORITIES[prefetch.priority]
        stream = None
        if number is not None and prefetch.where == BESIDE and self.device.type != "cpu":
            stream = streams_of(self.device.type, priority, number if prefetch.streams == EACH else 0).beside
        return How(stream, self._captured(priority=priority))

    def _captured(self, *, pool: object = None, priority: int = 0) -> Callable[[Compute], Compute]:
        """Makes device work a graph, where there are graphs."""
        if self.device.type != "cuda":
            return lambda work: work
        return partial(Replay, pool=pool, priority=priority)


def steps_before(batches: Sequence[Batch], steps: int) -> Callable[[Batch], Sequence[Batch]]:
    """The batches of the steps that come before one in a sample of several.

    Args:
        batches: that rotate.
        steps: of a sample.
    """
    numbers = {id(batch): number for number, batch in enumerate(batches)}
    before = {
        id(batch): [batches[(numbers[id(batch)] - back) % len(batches)] for back in range(steps - 1, 0, -1)]
        for batch in batches
    }
    return lambda batch: before[id(batch)]
