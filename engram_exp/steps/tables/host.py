"""A table in host memory."""

from __future__ import annotations

import logging
import time

import torch

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.placement import Placement
from engram_exp.steps.tables import parts_in
from engram_exp.vocabulary import HOST

log = logging.getLogger(__name__)

ENOUGH_HUGE_PAGES = 0.9
SMALL_BYTES = 2**25  # of a table whose two ends, which fill no huge page, are a large share of it


class HostTable:
    """Rows in host memory, every page written.

    Args:
        rows: of the table.
        row_format: how they are stored.
        seed: the contents follow from it and the row id.
        placement: must be the CPU; it says whether there is a device to pin memory for.
        huge_pages: ask the kernel for 2 MiB pages; a warning says if it grants too few.
        pinned: register the memory with the driver, so that a GPU can read it.

    Raises:
        RegistrationError: the driver refuses to register it.
    """

    place = HOST

    def __init__(
        self, rows: int, row_format: RowFormat, seed: int, placement: Placement, huge_pages: bool, pinned: bool
    ) -> None:
        self.row_format = row_format
        self.seed = seed
        size = rows * row_format.width * row_format.storage_dtype.itemsize
        memory = HostMemory(size, huge_pages=huge_pages)
        self.parts = parts_in(memory.bytes, rows, row_format)
        began = time.perf_counter()
        row_format.fill(self.parts, seed)
        log.info("filled a table of %.2f GB in %.1f s", size / 1e9, time.perf_counter() - began)
        self.huge_page_share = memory.huge_page_share()
        granted = self.huge_page_share or 0
        if huge_pages and size >= SMALL_BYTES and granted < ENOUGH_HUGE_PAGES:
            log.warning("2 MiB pages granted for %.0f %% of the table", 100 * granted)
        if pinned and placement.pinned:
            began = time.perf_counter()
            memory.pin()
            log.info("pinned it in %.1f s", time.perf_counter() - began)

    def contents(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] that a lookup must return, computed anew."""
        return self.row_format.contents(row_ids, self.seed)
