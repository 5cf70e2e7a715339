"""Rows that are asked for twice cross the link once: a kernel reads the distinct ones, another puts them in place."""

from __future__ import annotations

from math import ceil
from typing import Literal

import torch

from engram_exp.errors import ConfigError
from engram_exp.machine.placement import Placement, multiprocessors
from engram_exp.stage import Load
from engram_exp.steps.lookup.near_or_far_triton import gather_near_or_far
from engram_exp.steps.lookup.numbering import Numbering
from engram_exp.steps.lookup.order import ReadTimes, reading
from engram_exp.steps.lookup.step import Lookup, sort_bytes
from engram_exp.steps.lookup.triton import TritonLookup
from engram_exp.steps.lookup.words import Words
from engram_exp.steps.tables.host import HostTable
from engram_exp.vocabulary import AS_ASKED, SORTED

ROWS, WARPS = 32, 4  # of a program that puts rows in place


class DistinctLinkLookup(Lookup):
    """Sorts the row ids on the GPU, reads each distinct row once, in order, and copies from there.

    Shapes do not depend on how many rows are distinct, so that a CUDA graph can replay it: what is left of the buffer
    is filled with a row that has been read already, and rows for which it has no room are read wherever they are asked
    for.

    Args:
        table: in pinned host memory, or on the device.
        max_tokens: T, at most.
        columns: H.
        placement: the GPU.
        bound: of the row ids of a call, the share that there is room for as distinct rows, above 0 and at most 1.
        rows_per_program, warps, programs: of the kernel that reads the distinct rows, as `TritonLookup` has them.
        read_times, beside: likewise.

    Raises:
        ConfigError: a bound out of range, or as `TritonLookup`.
        SkippedError: as `TritonLookup`.
    """

    counts_rows = True

    def __init__(
        self,
        table: HostTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        bound: float,
        rows_per_program: int | Literal["auto"],
        warps: int,
        programs: int | Literal["auto", "multiprocessors", "half_beside"] | None,
        read_times: ReadTimes | None = None,
        beside: bool = False,
    ) -> None:
        placement.require_triton("lookup")
        if not 0 < bound <= 1:
            raise ConfigError("lookup.bound", bound, "must be above 0 and at most 1: all rows may be distinct")
        most, row_format = max_tokens * columns, table.row_format
        self.bound, self.words, apart = bound, Words(row_format), Placement(placement.device)
        self.rows = placement.empty(most, row_format.width, dtype=row_format.storage_dtype)
        how = reading(
            SORTED,
            rows_per_program,
            programs,
            sort_from_rows=0,
            rows=self._room(most),
            row_bytes=row_format.width * row_format.storage_dtype.itemsize,
            table=table.place,
            table_bytes=sum(part.nbytes for part in table.parts),
            multiprocessors=multiprocessors(placement.device),
            beside=beside,
            times=read_times,
        )
        launch = how.rows_per_program, warps, how.programs
        self.read = TritonLookup(table, self._room(most), 1, apart, AS_ASKED, 0, *launch)
        self.parts, self.numbering = self.words.parts_of(table), Numbering(most, placement.device)
        self.counts = torch.zeros(2, dtype=torch.int64, device=placement.device)

    @classmethod
    def bytes_moved(cls, load: Load) -> int:
        """Row ids and distinct rows read, rows written."""
        repeated = (1 - load.distinct_rows) * load.geometry.stored_bytes(load.tokens)
        return super().bytes_moved(load) - round(repeated)

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Rows as asked for, and as many as there is room for as read; what sorts and numbers the row ids."""
        rows = load.bytes_of(load.stage.makes)
        room = ceil(load.options.get("bound", 1) * load.row_ids) * load.row_bytes
        sort = sort_bytes(load)
        return {load.stage.side: rows + room + Numbering.bytes(load.row_ids, load.geometry.row_id_bytes) + sort}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H] inside of the table; overwritten by the next call."""
        flat = row_ids.view(-1)
        out, word = self.rows[: len(flat)], self.words.dtype
        distinct, numbers = self.numbering(flat)
        read = self.read(distinct[: self._room(len(flat))].view(1, -1, 1))
        near = self.parts, read.view(word), numbers
        gather_near_or_far(*near, flat, out.view(word), self.counts, ROWS, WARPS, last=self.numbering.last)
        return out.view(row_ids.shape[0] * row_ids.shape[1], -1)

    def _room(self, row_ids: int) -> int:
        return ceil(self.bound * row_ids)
