"""Layers with tables inside a step of a model's decoder: how rows reach a layer while others are computed.

A step runs on one stream, cut in front of every layer with a table. What fetches that layer's rows says when it starts
and where the step must wait for it; nothing else tells one way from another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch

from engram_exp.decoder.decoder import Step
from engram_exp.layer.tokens import Batch
from engram_exp.stage import BuiltStage, Strategy, Tensors
from engram_exp.strategy.schedule import streams_of
from engram_exp.vocabulary import HOST

READING_BACK = -1  # the number of the stream on which sampled ids come to the host

Compute = Callable[[Tensors], Tensors]


class StepIds:
    """Token ids of a step: made on the host, as a prompt's are, or sampled on the device, and copied to where else they
    are read.

    Args:
        like: a batch of the step's shape.
        device: of the decoder.
        sampled: they are made there: whoever hashes on the host reads them back first.
        pin: makes a copy of a batch in host memory that a transfer may write to without the host's help.
    """

    def __init__(self, like: Batch, device: torch.device, *, sampled: bool, pin: Callable[[Batch], Batch]) -> None:
        self.has_streams = device.type != "cpu"
        self.sampled = sampled and self.has_streams
        self.is_back = True
        self.on_device = Batch(*(torch.empty_like(tensor, device=device) for tensor in like))
        self.taken = like
        if self.has_streams:
            self.begun = torch.Event(device=device.type)
        if self.sampled:
            self.read_back = pin(like)
            self.back = streams_of(device.type, number=READING_BACK).beside

    def take(self, batch: Batch) -> None:
        """Begin a step with these ids, which lie where they are made."""
        for target, source in zip(self.on_device, batch, strict=True):
            target.copy_(source, non_blocking=True)
        self.taken, self.is_back = batch, not self.sampled
        if self.has_streams:
            self.begun.record(torch.accelerator.current_stream())

    def stream_waits(self, stream: torch.Stream) -> None:
        """Until the step has begun: its ids are there, and all that the steps before it read has been read."""
        stream.wait_event(self.begun)

    def on_host(self) -> Batch:
        """The ids on the host, once the step has begun; sampled ones are read back by the first who asks."""
        if not self.sampled:
            if self.has_streams:
                self.begun.synchronize()
            return self.taken
        if not self.is_back:
            with self.back:
                self.stream_waits(self.back)
                for target, source in zip(self.read_back, self.on_device, strict=True):
                    target.copy_(source, non_blocking=True)
            self.back.synchronize()
            self.is_back = True
        return self.read_back


class Fetch(Protocol):
    """How the rows of one layer come to where it reads them."""

    def start(self) -> None:
        """Begin, if that takes no more than a launch: the first layers of the decoder are under way."""

    def arrive(self) -> Tensors:
        """The rows; the current stream has been told to wait for them."""


@dataclass(frozen=True)
class InPlace:
    """Rows that are where the layer reads them before the step begins; or none, for a layer that is left out."""

    rows: Tensors = ()

    def start(self) -> None:
        """Nothing is to be done."""

    def arrive(self) -> Tensors:
        """The rows."""
        return self.rows


class DeviceFetch:
    """The device hashes and reads rows, beside the decoder or on its stream.

    Args:
        ids: of the step.
        work: takes ids and their history on the device and returns the rows there.
        stream: that it runs on; None: the decoder's, when the layer is reached.
    """

    def __init__(self, ids: StepIds, work: Compute, stream: torch.Stream | None) -> None:
        self.ids, self.work, self.stream = ids, work, stream
        if stream is not None:
            self.ready = torch.Event(device=stream.device.type)

    def start(self) -> None:
        """Launch it beside the decoder."""
        if self.stream is not None:
            with self.stream:
                self.ids.stream_waits(self.stream)
                self.rows = self.work(self.ids.on_device)
                self.ready.record(self.stream)

    def arrive(self) -> Tensors:
        """The rows."""
        if self.stream is None:
            return self.work(self.ids.on_device)
        self.decoder_waits(torch.accelerator.current_stream())
        return self.rows

    def decoder_waits(self, current: torch.Stream) -> None:
        """Until the rows are there."""
        current.wait_event(self.ready)


class HostFetch:
    """The host works while the device runs the layers before; what it made crosses the link beside them.

    Args:
        ids: of the step.
        host: takes ids and their history on the host and returns what crosses.
        across: takes that to the device.
        stream: that it crosses on; None: the decoder's.
    """

    def __init__(self, ids: StepIds, host: Strategy, across: Strategy, stream: torch.Stream | None) -> None:
        self.ids, self.host, self.across, self.stream = ids, host, across, stream
        self.rows: Tensors = ()
        if ids.has_streams:
            self.sent = torch.Event(device=ids.on_device.ids.device.type)

    def start(self) -> None:
        """Nothing: the host is needed first, and the decoder must not wait for it."""

    def arrive(self) -> Tensors:
        """The rows."""
        if not self.ids.has_streams:
            return self.across(self.host(self.ids.on_host()))
        current = torch.accelerator.current_stream()
        # What the host made for the step before has crossed: that step's layers waited for it, and this step has begun.
        made = self.host(self.ids.on_host())
        stream = current if self.stream is None else self.stream
        with stream:
            if stream is not current:
                self.ids.stream_waits(stream)
            rows = self._kept(self.across(made))
            self.sent.record(stream)
        self.decoder_waits(current)
        return rows

    def _kept(self, rows: Tensors) -> Tensors:
        """The rows where they were first: a graph reads no other memory, and some uploads end in fresh one."""
        self.rows = self.rows or rows
        for kept, tensor in zip(self.rows, rows, strict=True):
            if kept.data_ptr() != tensor.data_ptr():
                kept.copy_(tensor)
        return self.rows

    def decoder_waits(self, current: torch.Stream) -> None:
        """Until the rows are there."""
        current.wait_event(self.sent)


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

    def __call__(self, batch: Batch) -> Tensors:
        """The hidden state [T, C] behind the last layer, and behind it what each layer with a table made. Work on the
        device may still be under way when this returns; the next call overwrites its results behind it."""
        *_, (hidden, *_) = parts = list(self._parts(batch))
        return hidden, *(tensor for _, *made in parts for tensor in made)

    def reached_ms(self, batch: Batch) -> list[float]:
        """When each layer with a table is reached, in ms from the step's begin."""
        if not self.ids.has_streams:
            began = time.perf_counter()
            times = [(time.perf_counter() - began) * 1e3 for _ in self._parts(batch)]
            return times[:-1]
        current, device = torch.accelerator.current_stream(), self.decoder.decoder.placement.device.type
        events = [torch.Event(device=device, enable_timing=True) for _ in range(len(self.others) + 1)]
        begin, *others = events
        begin.record(current)
        for event, _ in zip(others, islice(self._parts(batch), len(others)), strict=True):
            event.record(current)
        torch.accelerator.synchronize()
        return [begin.elapsed_time(event) for event in others]

    def _parts(self, batch: Batch) -> Iterator[Tensors]:
        """Run the parts of the step in turn: the hidden state behind each, and what the layer in it made."""
        self.ids.take(batch)
        (hidden,) = self.first((self.ids.on_device.ids,))
        for fetch in self.fetches:
            fetch.start()
        yield (hidden,)
        for fetch, part in zip(self.fetches, self.others, strict=True):
            hidden, *made = part((hidden, *fetch.arrive()))
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
        if self.fetched is not batch:
            self._start(batch)
            self._arrive(batch)
        for kept, rows in zip(self.in_place, self.rows, strict=True):
            for target, source in zip(kept, rows, strict=True):
                target.copy_(source)
        following = self.following(batch)
        self._start(following)
        result = self.step(batch)
        self._arrive(following)
        return result

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


def host_and_across(fetching: Sequence[BuiltStage]) -> tuple[Strategy, Strategy]:
    """The stages that bring a layer's rows to where it reads them: those on the host, and those from there on. Both
    sides have the ids."""
    across = next((n for n, stage in enumerate(fetching) if stage.planned.side != HOST), len(fetching))
    return Strategy(fetching[:across]), Strategy(fetching[across:])
