"""One read for each row, by threads that wait for one each, through the page cache."""

from __future__ import annotations

from typing import Literal

import numpy as np

from engram_exp.machine.placement import Placement
from engram_exp.machine.requests import Readers
from engram_exp.stage import Load
from engram_exp.steps.lookup.from_file import REQUEST_BYTES, ROWS_AT_A_TIME, FileLookup, row_requests
from engram_exp.steps.lookup.in_front import InFront, Profile
from engram_exp.steps.tables.on_disk import DiskTable


class PreadLookup(FileLookup):
    """Reads each row with pread(2).

    Args:
        table, max_tokens, columns, placement: as `FileLookup` has them.
        hot_gb, policy, state, profile, profile_tokens, profile_path: as `InFront` has them.
        queue_depth: threads, each of which has one read under way.

    Raises:
        ConfigError: as `FileLookup` and `Readers`.
    """

    def __init__(
        self,
        table: DiskTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        queue_depth: int,
        hot_gb: float = 0.0,
        policy: Literal["static", "lru"] = "static",
        state: Literal["warm", "steady", "cold"] = "warm",
        profile: Profile | None = None,
        profile_tokens: int = 1,
        profile_path: str | None = None,
    ) -> None:
        in_front = InFront(hot_gb, policy, state, profile, profile_tokens, profile_path)
        super().__init__(table, max_tokens, columns, placement, in_front)
        self.readers = {number: Readers(table.files[number], queue_depth) for number in self.extents}
        self.requests = np.empty((min(len(self.rows), ROWS_AT_A_TIME) * len(table.on_disk), 3), dtype=np.int64)

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Rows, and requests for some of them at a time, values and scales apart."""
        requests = 2 * min(load.row_ids, ROWS_AT_A_TIME) * REQUEST_BYTES
        return {load.stage.side: load.bytes_of(load.stage.makes) + requests}

    def _read_rows(self, file: int, extents: np.ndarray, row_ids: np.ndarray, out: np.ndarray) -> None:
        memory, row_bytes = out.reshape(-1), out.shape[1]
        for first in range(0, len(row_ids), ROWS_AT_A_TIME):
            end = min(len(row_ids), first + ROWS_AT_A_TIME)
            count = row_requests(row_ids, first, end, extents, row_bytes, self.requests)
            FileLookup.requested += count
            self.readers[file].read(self.requests[:count], memory)
