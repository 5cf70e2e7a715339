"""While the rows of one chunk are read, the chunk before is computed: two streams of one device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engram_exp.layer.tokens import Batch
from engram_exp.stage import Strategy, Tensors
from engram_exp.strategy.schedule import Chunk, Slot


class Overlap:
    """Ids are hashed as a whole; then chunk by chunk, rows are read on one stream and used on another.

    A CUDA graph can capture it: nothing waits for what was recorded before the call, except for the stream that it is
    called on.

    Args:
        whole: takes a batch and returns its row ids [B, L, H] on the device.
        chunks: in order; a lookup works beside the others. Those whose numbers are equal modulo `ring_depth` share its
            buffers.
        ring_depth: chunks that have buffers at a time.
        device: of all of it.
        result: tensors there that the last stages of all chunks fill between them.
    """

    def __init__(
        self, whole: Strategy, chunks: Sequence[Chunk], ring_depth: int, device: torch.device, result: Tensors
    ) -> None:
        self.whole, self.chunks, self.ring_depth, self.result = whole, chunks, ring_depth, result
        self.has_streams = device.type != "cpu"
        if self.has_streams:
            self.reading = torch.Stream(device=device)
            self.slots = [Slot(device) for _ in range(ring_depth)]

    def __call__(self, batch: Batch) -> Tensors:
        """The result; work on the device may still be under way when this returns."""
        (row_ids,) = self.whole(batch)
        if not self.has_streams:
            for chunk in self.chunks:
                chunk.behind(_read(chunk, row_ids))
            return self.result
        current = torch.accelerator.current_stream()
        self.reading_waits(current)
        for number, chunk in enumerate(self.chunks):
            slot = self.slots[number % self.ring_depth]
            with self.reading:
                if number >= self.ring_depth:
                    slot.link_waits(self.reading)
                rows = _read(chunk, row_ids)
                slot.sent.record(self.reading)
            slot.device_waits(current)
            chunk.behind(rows)
            slot.used.record(current)
        return self.result

    def reading_waits(self, current: torch.Stream) -> None:
        """Until row ids are there, and until the last call has used its rows."""
        self.reading.wait_stream(current)


def _read(chunk: Chunk, row_ids: torch.Tensor) -> Tensors:
    assert chunk.beside is not None
    return chunk.beside.run((chunk.cut.of_row_ids(row_ids),))
