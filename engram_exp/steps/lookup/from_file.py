"""What lookups share that read the file of a table themselves: rows as they are, or the blocks that hold them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numba import njit

from engram_exp.errors import ConfigError
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.placement import Placement
from engram_exp.machine.requests import OpenFile
from engram_exp.stage import Load
from engram_exp.steps.lookup.blocks import copy_rows, most_blocks, plan_blocks
from engram_exp.steps.lookup.in_front import InFront, keeps_recent
from engram_exp.steps.lookup.places import places_for
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.tables.on_disk import DiskTable
from engram_exp.vocabulary import COLD, DISK, HOST

REQUEST_BYTES = 24
ROWS_AT_A_TIME = 2**15  # of requests that are made for each row
STAGED_BYTES = 2**25  # of blocks at a time: rows further apart in a batch than these may read a block twice
BLOCK_BYTES = (512, 4096)
FOUND_ROWS = 2**15  # that are compared with a table which was found


class FileLookup(Lookup):
    """Reads rows from a file into a buffer that is allocated once, pinned if the placement says so.

    Args:
        table: in a file.
        max_tokens, columns: T, at most, and H.
        placement: of the output.
        in_front: memory for rows; the file is read for those that are not there.

    Raises:
        ConfigError: the table is in no file, or a number is out of range.
    """

    requested: ClassVar[int] = 0  # requests that all lookups of this process have made

    def __init__(
        self,
        table: DiskTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        in_front: InFront,
    ) -> None:
        placement.require("cpu", "lookup")
        in_front.check()
        if table.place != DISK:
            raise ConfigError("lookup", None, "reads the file of a table, which strategy=disk has")
        row_format = table.row_format
        self.table, itemsize = table, row_format.storage_dtype.itemsize
        self.rows = placement.empty(max_tokens * columns, row_format.width, dtype=row_format.storage_dtype)
        self.bytes = self.rows.view(torch.uint8).numpy()
        self.in_front, self.state = in_front, in_front.state
        self.counts_rows = self.keeps_rows = keeps_recent({"hot_gb": in_front.gb, "policy": in_front.policy})
        if self.keeps_rows and table.hot is None:
            table.hot = in_front.recent_rows(self.bytes.shape[1])
        self.missed = np.empty_like(self.bytes) if in_front.gb else self.bytes
        firsts = np.cumsum([0, *row_format.part_widths])
        self.extents: dict[int, np.ndarray] = {}  # of the parts in each file: offset, bytes, first byte of the row
        for part in table.on_disk:
            file, *extent = table.extents[part]
            known = self.extents.get(file, np.empty((0, 3), dtype=np.int64))
            self.extents[file] = np.vstack([known, [[*extent, firsts[part] * itemsize]]])
        self.resident = [
            (part, self.rows[:, firsts[number] : firsts[number + 1]], firsts[number])
            for number, part in table.resident.items()
        ]

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H]; overwritten by the next call.

        Raises:
            IndexError: a row id outside the table.
            OSError: of reading.
            ConfigError: the file has become shorter.
        """
        flat, count = row_ids.view(-1), row_ids.numel()
        ids = flat.numpy()
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.table.rows:
            outside = int(((ids < 0) | (ids >= self.table.rows)).sum())
            raise IndexError(f"{outside} row ids are outside of 0 to {self.table.rows - 1}")
        if not self.in_front.gb:
            self._read(ids, self.bytes)
        else:
            self._read_missing(ids)
        for part, target, _ in self.resident:
            torch.index_select(part, 0, flat, out=target[:count])
        return self.rows[:count].view(row_ids.shape[0] * row_ids.shape[1], -1)

    @classmethod
    def leaves_rows(cls, options: Mapping[str, Any]) -> bool:
        """Whether calls leave rows behind that later ones find."""
        return keeps_recent(options)

    @classmethod
    def refuse(cls, load: Load, free_bytes: int) -> None:
        """Nothing: what it keeps is not in the device's memory."""

    @property
    def counts(self) -> torch.Tensor:
        """Row ids whose rows were asked for before and still there, and all that were asked for: int64 [2]."""
        counts: torch.Tensor = self.table.hot.counts
        return counts

    def reset(self) -> None:
        """Forget the rows that were asked for last."""
        self.table.hot.reset()

    def kept(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Rows that were asked for last, some at a time: row ids [N], and what it would return for each, [N, width].
        Not all where the table was found: whoever compares them reads them once more."""
        for row_ids, rows in self.table.hot.kept(FOUND_ROWS if self.table.is_found else None):
            whole = rows.view(self.rows.dtype)
            for part, _, first in self.resident:
                whole[:, first : first + part.shape[1]] = part[row_ids]
            yield row_ids, whole

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """As every lookup's; with rows kept in memory, none need come from the disk, as far as is known beforehand."""
        found, is_empty = super().work(load), keeps_recent(load.options) and load.options.get("state") == COLD
        if load.options.get("hot_gb") and not is_empty:
            found["host rows"] = found.pop("disk rows", 0) or found["host rows"]
        return found

    @classmethod
    def shares(cls, load: Load) -> dict[str, int]:
        """The table, and rows that are kept in memory."""
        return {**super().shares(load), HOST: round(load.options.get("hot_gb", 0) * 1e9)}

    def _read_missing(self, row_ids: np.ndarray) -> None:
        """Read the rows that are not in memory."""
        hot = self._rows_in_memory()
        missing = hot.take(row_ids, self.bytes)
        if len(missing):
            try:
                self._read(row_ids[missing], self.missed)
            except BaseException:
                if self.keeps_rows:
                    self.reset()  # there are places for rows that did not come
                raise
            hot.put(row_ids, missing, self.missed[: len(missing)], self.bytes)

    def _rows_in_memory(self) -> Any:
        """Rows in memory, which all lookups of the table share; the first call reads those of a profile."""
        if self.table.hot is None:
            hot = self.table.hot = self.in_front.hot_rows(self.bytes.shape[1])
            for first in range(0, len(hot.row_ids), len(self.bytes)):
                some = hot.row_ids[first : first + len(self.bytes)]
                self._read(some, self.missed)
                hot.rows[first : first + len(some)] = self.missed[: len(some)]
        return self.table.hot

    def _read(self, row_ids: np.ndarray, out: np.ndarray) -> None:
        """Read the parts on disk of rows [N] of the table into `out` [N, bytes of a row]."""
        for file, extents in self.extents.items():
            self._read_rows(file, extents, row_ids, out)

    @abstractmethod
    def _read_rows(self, file: int, extents: np.ndarray, row_ids: np.ndarray, out: np.ndarray) -> None:
        """Read the parts in a file of rows [N] of the table into `out` [N, bytes of a row]."""


class BlockLookup(FileLookup):
    """Reads blocks past the page cache, each once for all rows that it holds, and copies the rows out of them.

    Args:
        table, max_tokens, columns, placement: as `FileLookup` has them.
        block_bytes: of a block.
        in_front: as `FileLookup` has it.

    Raises:
        ConfigError: as `FileLookup`; or the disk has larger blocks, or its file system does not read past the cache.
    """

    past_cache = True

    def __init__(
        self,
        table: DiskTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        block_bytes: int,
        in_front: InFront,
    ) -> None:
        super().__init__(table, max_tokens, columns, placement, in_front)
        if block_bytes not in BLOCK_BYTES:
            raise ConfigError("lookup.block_bytes", block_bytes, f"must be one of {', '.join(map(str, BLOCK_BYTES))}")
        of_row = sum(most_blocks(table.extents[part].row_bytes, block_bytes) for part in table.on_disk)
        most = max(of_row, min(STAGED_BYTES // block_bytes, len(self.rows) * of_row))
        self.block_bytes, self.of_row = block_bytes, of_row
        self.memory = HostMemory(most * block_bytes, huge_pages=True)
        self.memory.bytes.zero_()
        self.blocks = self.memory.bytes.numpy()[: most * block_bytes]
        self.requests = np.empty((most, 3), dtype=np.int64)
        self.known = places_for(most)  # blocks, and where they are staged
        self.files = {
            number: OpenFile(table.files[number].path, table.files[number].size_bytes, direct=True, unit=block_bytes)
            for number in self.extents
        }
        try:
            for file in self.files.values():
                file.finish(self.blocks, (0, block_bytes, 0), 0)
        except OSError as error:
            remedy = f"the disk, or its file system, reads no such blocks past the page cache ({error.strerror})"
            raise ConfigError("lookup.block_bytes", block_bytes, f"{remedy}; 4096, or lookup=pread") from error

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Rows, and of the blocks that hold them some at a time, with a request each and twice as many places."""
        blocks = min(STAGED_BYTES, load.row_ids * (load.row_bytes + 2 * BLOCK_BYTES[-1]))
        return {load.stage.side: load.bytes_of(load.stage.makes) + blocks + blocks // BLOCK_BYTES[0] * 88}

    def _read_rows(self, file: int, extents: np.ndarray, row_ids: np.ndarray, out: np.ndarray) -> None:
        first = 0
        while first < len(row_ids):
            self.known[:] = 0
            told = extents, self.block_bytes, self.of_row, self.known, self.requests
            end, count = plan_blocks(row_ids, first, *told)
            FileLookup.requested += count
            self._read_blocks(file, self.requests[:count])
            copy_rows(row_ids, first, end, extents, self.block_bytes, self.known, self.blocks, out)
            first = end

    @abstractmethod
    def _read_blocks(self, file: int, requests: np.ndarray) -> None:
        """Read requests int64 [N, 3] of a file into `blocks`."""


@njit(cache=True, error_model="numpy")
def row_requests(row_ids: Any, first: Any, end: Any, extents: Any, row_bytes: Any, requests: Any) -> Any:
    """A request for each part of some rows; how many there are."""
    count = 0
    for index in range(first, end):
        row = np.int64(row_ids[index])
        for part in range(len(extents)):
            offset, part_bytes, first_byte = extents[part]
            requests[count, 0] = offset + row * part_bytes
            requests[count, 1] = part_bytes
            requests[count, 2] = index * row_bytes + first_byte
            count += 1
    return count
