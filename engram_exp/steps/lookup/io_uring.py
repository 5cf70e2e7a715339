"""Blocks past the page cache, by io_uring: one thread has many reads under way."""

from __future__ import annotations

import numpy as np

from engram_exp.machine.placement import Placement
from engram_exp.machine.uring import Ring
from engram_exp.steps.lookup.from_file import BlockLookup, Profile
from engram_exp.steps.tables.on_disk import DiskTable


class IoUringLookup(BlockLookup):
    """Reads the blocks of rows through a ring, into memory that is registered with the kernel.

    Args:
        table, max_tokens, columns, placement, block_bytes: as `BlockLookup` has them.
        hot_gb, profile, profile_tokens: as `FileLookup` has them.
        queue_depth: reads under way at a time.

    Raises:
        ConfigError: as `BlockLookup`.
        SkippedError: the kernel has no io_uring for this process.
    """

    def __init__(
        self,
        table: DiskTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        queue_depth: int,
        block_bytes: int,
        hot_gb: float = 0.0,
        profile: Profile | None = None,
        profile_tokens: int = 1,
    ) -> None:
        hot = hot_gb, profile, profile_tokens
        super().__init__(table, max_tokens, columns, placement, block_bytes, *hot)
        self.rings = {number: Ring(file, queue_depth, self.blocks) for number, file in self.files.items()}

    def _read_blocks(self, file: int, requests: np.ndarray) -> None:
        self.rings[file].read(requests)
