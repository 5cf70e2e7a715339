"""Layers with tables in a step of a model's decoder, which runs on one stream and is cut in front of each of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple

import torch

from engram_exp.decoder.decoder import Step
from engram_exp.layer.tokens import Batch
from engram_exp.stage import Tensors
from engram_exp.strategy.fetch import Compute, Fetch, StepIds


class Reached(NamedTuple):
    """Where a step stands when it comes to a layer with a table.

    ms: from the step's begin until the layer is reached.
    waits_ms: from there until its rows are there.
    """

    ms: float
    waits_ms: float


class InStep:
    """A step of a decoder with layers that have tables.

    Args:
        decoder: its step.
        ids: of the step.
        numbers: of the decoder's layers in front of which those with tables stand, ascending.
        fetches: of the rows of each of them.
        computes: what each makes of its rows, on the decoder's stream; None: it is left out.
        captured: makes a part of the step a graph, where there are graphs.
    """

    def __init__(
        self,
        decoder: Step,
        ids: StepIds,
        numbers: Sequence[int],
        fetches: Sequence[Fetch],
        computes: Sequence[Compute | None],
        captured: Callable[[Compute], Compute],
    ) -> None:
        self.decoder, self.ids, self.fetches = decoder, ids, fetches
        ends = [*numbers, decoder.decoder.shape.layers]
        self.first = captured(self._first(ends[0]))
        stretches = zip(computes, numbers, ends[1:], strict=True)
        self.others = [captured(self._other(*stretch)) for stretch in stretches]

    def fed(self, fetches: Sequence[Fetch]) -> InStep:
        """This step, its very graphs, with rows that come otherwise to the same places: whatever the two differ by is
        their coming. Of two graphs of the same work one may be faster, by more than the samples of a run vary."""
        other = copy(self)
        other.fetches = fetches
        return other

    def __call__(self, batch: Batch) -> Tensors:
        """The hidden state [T, C] behind the last layer, and behind it what each layer with a table made. Work on the
        device may still be under way when this returns; the next call overwrites its results behind it."""
        *_, (hidden, *_) = parts = list(self._parts(batch))
        return hidden, *(tensor for _, *made in parts for tensor in made)

    def reached(self, batch: Batch) -> list[Reached]:
        """When each layer with a table is reached in a step, and how long it then waits for its rows."""
        times: list[Any] = []
        if self.ids.has_streams:
            current, device = torch.accelerator.current_stream(), self.decoder.decoder.placement.device.type

            def mark() -> None:
                times.append(torch.Event(device=device, enable_timing=True))
                times[-1].record(current)

        else:

            def mark() -> None:
                times.append(time.perf_counter())

        mark()
        for _ in self._parts(batch, mark):
            pass
        if self.ids.has_streams:
            torch.accelerator.synchronize()
            times = [times[0].elapsed_time(event) for event in times]
        else:
            times = [(each - times[0]) * 1e3 for each in times]
        return [Reached(at, there - at) for at, there in zip(times[1::2], times[2::2], strict=True)]

    def _parts(self, batch: Batch, mark: Callable[[], None] = lambda: None) -> Iterator[Tensors]:
        """Run the parts of the step in turn: the hidden state behind each, and what the layer in it made.

        Args:
            mark: is called where a layer is reached, and where its rows are there.
        """
        self.ids.take(batch)
        (hidden,) = self.first((self.ids.on_device.ids,))
        for fetch in self.fetches:
            fetch.start()
        yield (hidden,)
        for fetch, part in zip(self.fetches, self.others, strict=True):
            mark()
            rows = fetch.arrive()
            mark()
            hidden, *made = part((hidden, *rows))
            yield hidden, *made

    def _first(self, end: int) -> Compute:
        def run(tensors: Tensors) -> Tensors:
            return (self.decoder.run(0, end, self.decoder.begin(*tensors)),)

        return run

    def _other(self, compute: Compute | None, first: int, end: int) -> Compute:
        def run(tensors: Tensors) -> Tensors:
            hidden, *rows = tensors
            made = compute(tuple(rows)) if compute else ()
            hidden = self.decoder.run(first, end, hidden)
            if end == self.decoder.decoder.shape.layers:
                self.decoder.end(hidden)
            return hidden, *made

        return run


class Series:
    """Steps one behind the other, as a server runs them: while one is computed, the host launches the next, as far as
    it need not wait for the device.

    Args:
        step: of a model.
        before: the batches of the steps before one, in order.
    """

    def __init__(self, step: Callable[[Batch], Tensors], before: Callable[[Batch], Sequence[Batch]]) -> None:
        self.step, self.before = step, before

    def __call__(self, batch: Batch) -> Tensors:
        """What the last step makes of its batch."""
        for earlier in self.before(batch):
            self.step(earlier)
        return self.step(batch)


class Ahead:
    """A step whose rows are fetched while the step before runs. They are copied to where its layers read them when it
    begins, so that the next ones may come meanwhile.

    Args:
        step: with rows in place.
        in_place: where its layers read them.
        ids: of the step to come.
        fetches: of its rows, beside the decoder.
        following: which batch comes behind another. One that was not to be expected is fetched when its step begins.
    """

    def __init__(
        self,
        step: Callable[[Batch], Tensors],
        in_place: Sequence[Tensors],
        ids: StepIds,
        fetches: Sequence[Fetch],
        following: Callable[[Batch], Batch],
    ) -> None:
        self.step, self.in_place, self.following = step, in_place, following
        self.ids, self.fetches = ids, fetches
        self.fetched: Batch | None = None

    def __call__(self, batch: Batch) -> Tensors:
        """What the step makes of a batch; the rows of the next one are under way, or there."""
        self.expect(batch)
        for kept, rows in zip(self.in_place, self.rows, strict=True):
            for target, source in zip(kept, rows, strict=True):
                target.copy_(source)
        following = self.following(batch)
        self._start(following)
        result = self.step(batch)
        self._arrive(following)
        return result

    def expect(self, batch: Batch) -> None:
        """Fetch the rows of the batch that comes next, unless they are under way."""
        if self.fetched is not batch:
            self._start(batch)
            self._arrive(batch)

    def forget(self) -> None:
        """Rows that were fetched for ids which have been written over since."""
        self.fetched = None

    def _start(self, batch: Batch) -> None:
        self.ids.take(batch)
        for fetch in self.fetches:
            fetch.start()

    def _arrive(self, batch: Batch) -> None:
        self.rows = [fetch.arrive() for fetch in self.fetches]
        self.fetched = batch


class Fetching:
    """The rows of all layers with tables, and no decoder beside them.

    Args:
        ids: of the step.
        fetches: of the rows of each layer.
    """

    def __init__(self, ids: StepIds, fetches: Sequence[Fetch]) -> None:
        self.ids, self.fetches = ids, fetches

    def __call__(self, batch: Batch) -> Tensors:
        """The rows of one layer behind those of another; the work of the device may still be under way."""
        return tuple(tensor for rows in self.rows_of(batch) for tensor in rows)

    def rows_of(self, batch: Batch) -> list[Tensors]:
        """The rows of each layer, likewise."""
        self.ids.take(batch)
        for fetch in self.fetches:
            fetch.start()
        return [fetch.arrive() for fetch in self.fetches]
