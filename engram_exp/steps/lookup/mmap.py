"""The file of a table as memory: the kernel reads a page where a row is touched that is not there."""

from __future__ import annotations

import mmap
from typing import Any, Literal

import torch
from numba import njit

from engram_exp.errors import ConfigError
from engram_exp.machine.native_calls import LIBC, address_of, call
from engram_exp.machine.page_cache import POPULATE_READ
from engram_exp.machine.placement import Placement
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.loops import Threads
from engram_exp.steps.tables.on_disk import DiskTable
from engram_exp.vocabulary import AUTO, DISK

MADVISE = address_of(LIBC.madvise)
HINTS = {"willneed": mmap.MADV_WILLNEED, "populate": POPULATE_READ}


class MmapLookup(GatherLookup):
    """Gathers rows of a mapped file as those of a table in memory.

    Args:
        table: in a file, which is told that reads are random: nothing is read ahead.
        max_tokens, columns, placement, threads: as `GatherLookup` has them.
        hint: for the pages of all rows before they are gathered. willneed: the kernel begins to read them and does not
            wait; populate: it reads and maps them, one row after the other; none: a page is read when it is touched.

    Raises:
        ConfigError: the table is in no file, or the kernel does not know the hint.
    """

    def __init__(
        self,
        table: DiskTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        hint: Literal["none", "willneed", "populate"],
        threads: Threads = AUTO,
    ) -> None:
        if table.place != DISK:
            raise ConfigError("lookup", None, "maps the file of a table, which strategy=disk has")
        super().__init__(table, max_tokens, columns, placement, threads)
        self.advice = HINTS.get(hint)
        for mapped in table.maps:
            mapped.madvise(mmap.MADV_RANDOM)
            try:
                mapped.madvise(self.advice or mmap.MADV_RANDOM, 0, mmap.PAGESIZE)
            except OSError as error:
                raise ConfigError("lookup.hint", hint, f"this kernel does not take it ({error.strerror})") from error
        self.on_disk = [self.tables[number] for number in table.on_disk]

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H]; overwritten by the next call.

        Raises:
            IndexError: a row id outside the table.
        """
        if self.advice is not None:
            for part in self.on_disk:
                _advise(MADVISE, part, row_ids.numpy().reshape(-1), self.advice, mmap.PAGESIZE)
        return super().__call__(row_ids)


@njit(nogil=True, cache=True, error_model="numpy")
def _advise(madvise: Any, part: Any, row_ids: Any, advice: Any, page_bytes: Any) -> None:
    """Give advice for the pages of some rows."""
    begin, row_bytes = part.ctypes.data, part.shape[1] * part.itemsize
    for row_id in row_ids:
        if 0 <= row_id < len(part):
            first = (begin + row_id * row_bytes) // page_bytes * page_bytes
            call(madvise, (first, begin + (row_id + 1) * row_bytes - first, advice))
