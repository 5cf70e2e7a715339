"""A table in ordinary host memory."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch

from engram_exp.placement import Placement
from engram_exp.tables.contents import contents, fill


class HostTable:
    """Rows in pageable host memory, every page written.

    With `huge_pages` the kernel is asked for 2 MiB pages, which spare a random row most of its address translation;
    it may grant none.

    Args:
        rows: of the table.
        row_values: D.
        dtype: of the values.
        seed: the contents follow from it and the row id.
        placement: must be the CPU.
        huge_pages: ask for 2 MiB pages.
    """

    def __init__(
        self, rows: int, row_values: int, dtype: torch.dtype, seed: int, placement: Placement, huge_pages: bool
    ) -> None:
        placement.require("cpu", "table=host")
        self.seed = seed
        memory = mmap.mmap(-1, rows * row_values * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if huge_pages:
            with suppress(OSError):  # a kernel without them
                memory.madvise(mmap.MADV_HUGEPAGE)
        self.storage = torch.frombuffer(memory, dtype=dtype).view(rows, row_values)
        fill(self.storage, seed)

    def contents(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The rows [*row_ids.shape, D] that a lookup must return, computed anew."""
        return contents(row_ids, self.storage.shape[1], self.storage.dtype, self.seed)
