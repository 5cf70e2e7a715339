"""Rows that are asked for twice are read once, and expanded where they are needed: on the CPU and on the GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from engram_exp.machine.placement import Placement
from engram_exp.stage import Load
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.lookup.numbering import Numbering
from engram_exp.steps.lookup.step import Lookup, sort_bytes
from engram_exp.steps.lookup.words import Words
from engram_exp.steps.tables.device import DeviceTable
from engram_exp.steps.tables.host import HostTable
from engram_exp.vocabulary import AS_ASKED, DEVICE


class DistinctLookup(Lookup):
    """Sorts the row ids, reads each distinct row into a buffer and copies from there.

    Shapes do not depend on how many rows are distinct, so that a CUDA graph can replay it: on the GPU, what is left of
    the buffer is filled with a row that has been read already.

    Args:
        table: in memory that the placement's device can read.
        max_tokens: T, at most.
        columns: H.
        placement: of the output; the CPU reads with `lookup=gather`, a GPU with `lookup=triton`.
        rows_per_program, warps, programs: of the GPU's kernel, as `TritonLookup` has them.
    """

    def __init__(
        self,
        table: HostTable | DeviceTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        rows_per_program: int,
        warps: int,
        programs: int | None,
    ) -> None:
        apart = Placement(placement.device)
        self.on_host = placement.device.type == "cpu"
        if self.on_host:
            self.read: Callable[[torch.Tensor], torch.Tensor] = GatherLookup(table, max_tokens, columns, apart)
        else:
            from engram_exp.steps.lookup.triton import TritonLookup  # Triton comes with PyTorch's CUDA builds only

            launch = (rows_per_program, warps, programs)
            self.read = TritonLookup(table, max_tokens, columns, apart, AS_ASKED, 0, *launch)
        self.words = Words(table.row_format)
        self.rows = placement.empty(max_tokens * columns, table.row_format.width, dtype=table.row_format.storage_dtype)
        self.numbering = Numbering(len(self.rows), placement.device)

    @classmethod
    def bytes_moved(cls, load: Load) -> int:
        """Row ids and distinct rows read, rows written."""
        repeated = (1 - load.distinct_rows) * load.geometry.stored_bytes(load.tokens)
        return super().bytes_moved(load) - round(repeated)

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Rows, as read and as asked for; row ids twice, places, and on the GPU what a radix sort takes."""
        indices = Numbering.bytes(load.row_ids, load.geometry.row_id_bytes)
        sort = sort_bytes(load) if load.stage.side == DEVICE else 0
        return {load.stage.side: 2 * load.bytes_of(load.stage.makes) + indices + sort}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H] inside of the table; overwritten by the next call."""
        count = row_ids.numel()
        distinct, numbers = self.numbering(row_ids.view(-1))
        to_read = int(self.numbering.last) + 1 if self.on_host else count
        read = self.read(distinct[:to_read].view(1, -1, 1)).view(self.words.dtype)
        torch.index_select(read, 0, numbers, out=self.rows[:count].view(self.words.dtype))
        return self.rows[:count].view(row_ids.shape[0] * row_ids.shape[1], -1)
