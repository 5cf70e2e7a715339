"""How the stages of a whole follow each other: overlapping in chunks, or replayed as one CUDA graph.

Without either, a `Strategy` runs them one after the other on the whole batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch

from engram_exp.layer.tokens import Batch
from engram_exp.stage import Strategy, Tensors


class Cut(NamedTuple):
    """A chunk of a batch: some whole sequences, or a stretch of one."""

    sequences: slice
    positions: slice

    @property
    def tokens(self) -> int:
        """Tokens of the chunk."""
        return (self.sequences.stop - self.sequences.start) * (self.positions.stop - self.positions.start)

    def of(self, batch: Batch) -> Batch:
        """The ids of the chunk, each with the ids before it as history."""
        ids, history = batch.ids[self.sequences], batch.history[self.sequences]
        start, length = self.positions.start, history.shape[1]
        if start >= length:
            history = ids[:, start - length : start]
        elif start:
            history = torch.cat([history[:, start:], ids[:, :start]], dim=1)
        return Batch(ids[:, self.positions], history)

    def of_row_ids(self, tensors: Tensors) -> Tensors:
        """The row ids of the chunk among those of a batch, [B, L, H]; a view without gaps."""
        (row_ids,) = tensors
        return (row_ids[self.sequences, self.positions],)


def cut(batch_size: int, seq_len: int, chunk_tokens: int) -> list[Cut]:
    """Cut a batch into chunks of at most `chunk_tokens`, in the order of its tokens."""
    if chunk_tokens >= seq_len:
        step = chunk_tokens // seq_len
        return [Cut(rows, slice(0, seq_len)) for rows in _slices(batch_size, step)]
    return [
        Cut(slice(row, row + 1), positions) for row in range(batch_size) for positions in _slices(seq_len, chunk_tokens)
    ]


def _slices(total: int, step: int) -> Iterator[slice]:
    return (slice(first, min(total, first + step)) for first in range(0, total, step))


@dataclass(frozen=True)
class Chunk:
    """How a chunk is cut out, and the stages that it passes: those before the one that works beside others, that one,
    if there is any, and those behind it."""

    cut: Callable[[Any], Tensors]
    before: Strategy
    beside: Strategy
    behind: Callable[[Tensors], Tensors]


class Streams(NamedTuple):
    """The streams that schedules use beside the current one.

    beside: of what works beside others.
    capturing: of all captures, since libraries keep a workspace for each stream; None where nothing is captured.
    """

    beside: torch.Stream
    capturing: torch.cuda.Stream | None


@cache
def streams_of(device_type: str, priority: int = 0, number: int = 0) -> Streams:
    """Those of the current device of a type, created one right after the other and kept as long as the process lives:
    PyTorch hands out the same few streams in turn, and two that are created at any other times may be one.

    Args:
        device_type: such as cuda.
        priority: of both; the lower, the sooner. Kernels of a graph keep that of the stream that they are captured on.
        number: tells streams apart that are wanted beside each other.
    """
    beside = torch.Stream(device=device_type, priority=priority)
    return Streams(beside, torch.cuda.Stream(priority=priority) if device_type == "cuda" else None)


class Slot:
    """Tells when the buffers that several chunks share in turn may be read and written again.

    Args:
        device: that the chunks end on.
    """

    def __init__(self, device: torch.device) -> None:
        self.sent = torch.Event(device=device.type)
        self.used = torch.Event(device=device.type)

    def host_waits(self) -> None:
        """Until its buffer has been sent and may be written again."""
        self.sent.synchronize()

    def beside_waits(self, stream: torch.Stream) -> None:
        """Until the device has used its buffer, which may then be written again."""
        stream.wait_event(self.used)

    def device_waits(self, stream: torch.Stream) -> None:
        """Until its buffer is full."""
        stream.wait_event(self.sent)


class Pipeline:
    """While one chunk is used on the device, the next is sent there by the stage that works beside others, on a stream
    of its own: an upload, and the host works on the chunk behind that one; or a lookup, where the device works alone.

    Where the device works alone, a CUDA graph can capture it: nothing waits for what was recorded before the call,
    except for the stream that it is called on.

    Args:
        chunks: in order; those whose numbers are equal modulo `ring_depth` share buffers.
        ring_depth: chunks that have buffers at a time.
        device: that they end on.
        result: tensors there that the last stages of all chunks fill between them.
        whole: where the device works alone: makes what the chunks are cut out of. None: they are cut out of a batch.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        ring_depth: int,
        device: torch.device,
        result: Tensors,
        whole: Strategy | None = None,
    ) -> None:
        self.chunks, self.whole, self.result = chunks, whole, result
        self.has_streams = device.type != "cpu"
        if self.has_streams:
            self.beside = streams_of(device.type).beside
            self.slots = [Slot(device) for _ in range(ring_depth)]

    def __call__(self, batch: Batch) -> Tensors:
        """The result; work on the device may still be under way when this returns."""
        uncut = self.whole(batch) if self.whole else batch
        if not self.has_streams:
            for chunk in self.chunks:
                chunk.behind(chunk.beside(chunk.before(chunk.cut(uncut))))
            return self.result
        current = torch.accelerator.current_stream()
        self.beside_waits(current)
        for number, chunk in enumerate(self.chunks):
            slot = self.slots[number % len(self.slots)]
            if not self.whole:
                slot.host_waits()
            tensors = chunk.before(chunk.cut(uncut))
            with self.beside:
                if number >= len(self.slots):
                    slot.beside_waits(self.beside)
                tensors = chunk.beside(tensors)
                slot.sent.record(self.beside)
            slot.device_waits(current)
            chunk.behind(tensors)
            slot.used.record(current)
        return self.result

    def beside_waits(self, current: torch.Stream) -> None:
        """Until what the chunks are cut out of is there, and until the last call's result has been read, which may be
        overwritten next."""
        self.beside.wait_stream(current)


class Replay:
    """Device work that is captured as a CUDA graph when it is first called, and replayed when it is called again: one
    launch instead of one for each kernel.

    Args:
        strategy: without host steps; what it reads again must be in kept buffers.
        pool: of memory, shared with graphs that never run beside this one; None: its own.
        priority: of its kernels among others on the device; the lower, the sooner.

    Raises:
        RuntimeError: called on other buffers than it was captured for.
    """

    def __init__(self, strategy: Callable[[Any], Tensors], pool: Any = None, priority: int = 0) -> None:
        self.strategy, self.pool, self.priority = strategy, pool, priority
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tensors: Tensors) -> Tensors:
        """What the strategy returns for these tensors."""
        buffers = [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in tensors]
        if self.graph is None:
            self.buffers = buffers
            return self._run_and_capture(tensors)
        if buffers != self.buffers:
            raise RuntimeError("a graph was captured for other buffers: a stage before it does not keep its own")
        self.graph.replay()
        return self.captured

    def _run_and_capture(self, tensors: Tensors) -> Tensors:
        side, current = streams_of("cuda", self.priority).capturing, torch.cuda.current_stream()
        assert side is not None
        side.wait_stream(current)
        with torch.cuda.stream(side):
            self.strategy(tensors)  # compiles kernels and allocates buffers, which a capture must not
            torch.cuda.empty_cache()  # of that: the graph takes as much once more, in memory of its own
            graph = torch.cuda.CUDAGraph()
            collects = gc.isenabled()
            gc.disable()  # what it would free meanwhile may synchronise, which breaks a capture
            try:
                graph.capture_begin(pool=self.pool)
                try:
                    self.captured = self.strategy(tensors)
                finally:
                    graph.capture_end()
            finally:
                if collects:
                    gc.enable()
            self.graph = graph
        current.wait_stream(side)
        graph.replay()
        return self.captured


class Graph:
    """The stages as one CUDA graph; a call copies the batch to where the graph reads it and replays.

    Args:
        strategy: without host steps, on one stream or several; shapes are those of `batch`.
        batch: in pinned memory of its own; overwritten by each call.
    """

    def __init__(self, strategy: Callable[[Any], Tensors], batch: Batch) -> None:
        self.replay = Replay(strategy)
        self.batch = batch
        self.replayed = torch.cuda.Event()

    def __call__(self, batch: Batch) -> Tensors:
        """What the stages make of a batch; work on the device may still be under way when this returns."""
        self.host_waits()
        for target, source in zip(self.batch, batch, strict=True):
            target.copy_(source)
        result = self.replay(self.batch)
        self.replayed.record()
        return result

    def host_waits(self) -> None:
        """Until the last replay has read its ids."""
        self.replayed.synchronize()
