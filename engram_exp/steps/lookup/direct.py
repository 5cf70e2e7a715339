"""Blocks past the page cache (O_DIRECT), by threads that wait for one read each."""

from __future__ import annotations

from typing import Literal

import numpy as np

from engram_exp.machine.placement import Placement
from engram_exp.machine.requests import Readers
from engram_exp.steps.lookup.from_file import BlockLookup
from engram_exp.steps.lookup.in_front import InFront, Profile
from engram_exp.steps.tables.on_disk import DiskTable


class DirectLookup(BlockLookup):
    """Reads the blocks of rows with pread(2).

    Args:
        table, max_tokens, columns, placement, block_bytes: as `BlockLookup` has them.
        hot_gb, policy, state, profile, profile_tokens, profile_path: as `InFront` has them.
        queue_depth: threads, each of which has one read under way.

    Raises:
        ConfigError: as `BlockLookup` and `Readers`.
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
        policy: Literal["static", "lru"] = "static",
        state: Literal["warm", "steady", "cold"] = "warm",
        profile: Profile | None = None,
        profile_tokens: int = 1,
        profile_path: str | None = None,
    ) -> None:
        in_front = InFront(hot_gb, policy, state, profile, profile_tokens, profile_path)
        super().__init__(table, max_tokens, columns, placement, block_bytes, in_front)
        self.readers = {number: Readers(file, queue_depth) for number, file in self.files.items()}

    def _read_blocks(self, file: int, requests: np.ndarray) -> None:
        self.readers[file].read(requests, self.blocks)
