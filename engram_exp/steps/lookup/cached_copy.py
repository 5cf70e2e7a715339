"""Rows of a table in host memory, of which a cache in device memory keeps some; the CPU gathers what is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal

import numpy as np
import torch

from engram_exp.machine.placement import Placement
from engram_exp.stage import Load
from engram_exp.steps.lookup.cached import CachedLookup
from engram_exp.steps.lookup.distinct_copy import DistinctCopyLookup
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.lookup.numbering import Numbering, ReadBack
from engram_exp.steps.lookup.row_cache_triton import HIT
from engram_exp.steps.lookup.step import sort_bytes
from engram_exp.steps.lookup.words import Part
from engram_exp.steps.loops import Threads
from engram_exp.steps.tables.host import HostTable
from engram_exp.vocabulary import AUTO, COLD, HOST

ROWS, WARPS = 16, 4  # of a program
LAUNCH = ROWS, WARPS, None


class CachedCopyLookup(CachedLookup):
    """Looks row ids up in a cache in device memory, has the CPU gather each row that is not there once, copies those,
    and then does as `CachedLookup`, which takes them from the copies: what hits, and what the cache keeps, is the same.

    The host waits for the row ids that miss, and with it all that it would launch behind them.

    Args:
        table: in host memory, pinned or not; up to `profile_path` all else is as `CachedLookup` has it.
        threads: of the CPU, as `GatherLookup` has them; auto: by the rows that miss in a call.

    Raises:
        ConfigError: as `CachedLookup`.
    """

    asks_host: ClassVar[bool] = True

    def __init__(
        self,
        table: HostTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        profile: Callable[[int, str | None], np.ndarray],
        gb: float,
        ways: int,
        policy: Literal["lru", "lfu", "static"],
        state: Literal["warm", "steady", "cold"],
        profile_tokens: int,
        threads: Threads = AUTO,
        profile_path: str | None = None,
    ) -> None:
        options = gb, ways, policy, state, profile_tokens, *LAUNCH, profile_path
        super().__init__(table, max_tokens, columns, placement, profile, *options)
        most, on_device, row_id_dtype = max_tokens * columns, Placement(placement.device), self.cache.tags.dtype
        self.missed = on_device.empty(most, dtype=row_id_dtype)
        self.read_back = ReadBack(most, row_id_dtype, placement.device)
        on_host = Placement(torch.device("cpu"), pinned=placement.device.type != "cpu")
        self.gather = GatherLookup(table, most, 1, on_host, threads)
        self.copied = on_device.empty(*self.rows.shape, dtype=self.rows.dtype)
        self.copied_parts = [Part(self.copied.view(self.words.dtype), 0)]
        self.copies = 0  # rows so far

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Cold, all distinct rows are read by the host and cross the link; warm, as `CachedLookup`."""
        return DistinctCopyLookup.work(load) if load.options.get("state") == COLD else super().work(load)

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Beside what `CachedLookup` keeps, row ids that miss, what finds the distinct ones of them, and the rows of
        these; on the host those row ids and rows."""
        rows, row_ids = load.bytes_of(load.stage.makes), load.bytes_of(load.stage.needs)
        finding = Numbering.bytes(load.row_ids, load.geometry.row_id_bytes) + sort_bytes(load)
        return {load.stage.side: super().keeps(load)[load.stage.side] + rows + row_ids + finding, HOST: rows + row_ids}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H] inside of the table; overwritten by the next call. Calls
        follow each other on one stream, or wait for each other."""
        # Those that hit are all HIT there, which is below every row id: it comes first, if there are any.
        found, numbers = self.read_back(self.cache.misses(row_ids.view(-1), self.missed, ROWS, WARPS))
        hits = int(found[0] == HIT)
        if hits < len(found):
            gathered = self.gather(found[hits:].view(1, -1, 1))
            self.copied[hits : len(found)].copy_(gathered, non_blocking=True)
            self.copies += len(gathered)
        return self.look_up(row_ids, self.copied_parts, numbers)

    @property
    def counts(self) -> torch.Tensor:
        """Row ids that hit so far, all that were asked for, and rows that were copied: int64 [3] where the cache is."""
        return torch.cat([self.cache.counts, self.cache.counts.new_full((1,), self.copies)])
