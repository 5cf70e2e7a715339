"""How the rows of a layer come to where a model's step reads them: when that starts, and where the step waits for them.
Nothing else tells one way from another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

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
        asks_host: the host waits in the middle of it: when the layer is reached, by when those before it are launched.
    """

    def __init__(self, ids: StepIds, work: Compute, stream: torch.Stream | None, *, asks_host: bool = False) -> None:
        self.ids, self.work, self.stream, self.asks_host = ids, work, stream, asks_host
        if stream is not None:
            self.ready = torch.Event(device=stream.device.type)

    def start(self) -> None:
        """Launch it beside the decoder."""
        if self.stream is not None and not self.asks_host:
            self._launch(self.stream)

    def arrive(self) -> Tensors:
        """The rows."""
        if self.stream is None:
            return self.work(self.ids.on_device)
        if self.asks_host:
            self._launch(self.stream)
        self.decoder_waits(torch.accelerator.current_stream())
        return self.rows

    def decoder_waits(self, current: torch.Stream) -> None:
        """Until the rows are there."""
        current.wait_event(self.ready)

    def _launch(self, stream: torch.Stream) -> None:
        with stream:
            self.ids.stream_waits(stream)
            self.rows = self.work(self.ids.on_device)
            self.ready.record(stream)


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
        # With its ids on the host this step has begun: what the host made for the one before has crossed and been read,
        # so neither the host nor the stream waits before it is written over.
        made = self.host(self.ids.on_host())
        stream = current if self.stream is None else self.stream
        with stream:
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


def host_and_across(fetching: Sequence[BuiltStage]) -> tuple[Strategy, Strategy]:
    """The stages that bring a layer's rows to where it reads them: those on the host, and those from there on. Both
    sides have the ids."""
    across = next((n for n, stage in enumerate(fetching) if stage.planned.side != HOST), len(fetching))
    return Strategy(fetching[:across]), Strategy(fetching[across:])
