"""What tables on a disk share: parts that lie somewhere in files, as memory and as places to read, cold or warm."""

from __future__ import annotations

import mmap
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from engram_exp.errors import ConfigError, DoesNotFitError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine import page_cache
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.memory import free_host_bytes
from engram_exp.machine.requests import OpenFile
from engram_exp.vocabulary import DISK, HOST


class Extent(NamedTuple):
    """Where a part of all rows lies: the number of its file, its first byte there, and its bytes of each row."""

    file: int
    offset: int
    row_bytes: int


class DiskTable:
    """Rows in files.

    Args:
        rows: of the table.
        row_format: how they are stored.
        files: that they lie in.
        extents: of each part of a row.
        resident_scales: keep the scales of split rows in host memory; only values are read from the files.

    Raises:
        ConfigError: there are no scales apart.
        DoesNotFitError: they do not fit into memory.

    on_disk: numbers of the parts that are read from files.
    resident: the others, by number.
    maps: of the files, once one has asked for `parts`.
    """

    place = DISK
    is_found = False  # nobody but its files tells its rows
    huge_page_share = None
    hot: Any = None  # rows that lookups keep in memory, once one does

    def __init__(
        self,
        rows: int,
        row_format: RowFormat,
        files: Sequence[OpenFile],
        extents: Sequence[Extent],
        resident_scales: bool,
    ) -> None:
        if resident_scales and len(row_format.part_widths) == 1:
            remedy = "scales lie in their rows; dtype=fp8 dtype.layout=split has them apart"
            raise ConfigError("table.resident_scales", resident_scales, remedy)
        self.rows, self.row_format, self.files, self.extents = rows, row_format, files, extents
        self.maps: list[mmap.mmap] = []
        self.on_disk = [0] if resident_scales else list(range(len(row_format.part_widths)))
        self.resident = {1: self._read(extents[1])} if resident_scales else {}

    @abstractmethod
    def contents(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] that a lookup must return."""

    @cached_property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """Arrays [rows, width of the part]: of the files, mapped, so that reading them reads the file; scales that are
        kept, in memory."""
        self.maps = [mmap.mmap(file.descriptor, file.size_bytes, prot=mmap.PROT_READ) for file in self.files]
        found = []
        for number, (file, offset, row_bytes) in enumerate(self.extents):
            content = np.frombuffer(self.maps[file], dtype=np.uint8, count=self.rows * row_bytes, offset=offset)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nobody writes to it
                part = torch.from_numpy(content).view(self.row_format.storage_dtype).view(self.rows, -1)
            found.append(self.resident.get(number, part))
        return tuple(found)

    @property
    def disk_row_bytes(self) -> int:
        """Bytes of a row that are read from files."""
        return sum(self.extents[number].row_bytes for number in self.on_disk)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    def make_cold(self) -> None:
        """Leave no page of the files in memory."""
        for mapped in self.maps:
            mapped.madvise(mmap.MADV_DONTNEED)  # a mapped page would stay
        for file in self.files:
            page_cache.drop(file.descriptor)

    def make_warm(self) -> None:
        """Read the files into the page cache, and map its pages where the files are mapped.

        Raises:
            DoesNotFitError: they are larger than the memory that is free.
        """
        free = free_host_bytes()
        if self.size_bytes > free:
            raise DoesNotFitError(HOST, self.size_bytes, free, "cache_state=as_is, or a smaller model.table_scale")
        for file in self.files:
            page_cache.load(file.descriptor)
        for mapped in self.maps:
            page_cache.map_pages(mapped)

    def resident_share(self) -> float | None:
        """Share of the files' pages that are in memory now; None where the kernel does not tell."""
        resident = 0.0
        for file in self.files:
            share = page_cache.resident_share(file.descriptor)
            if share is None:
                return None
            resident += share * file.size_bytes
        return resident / self.size_bytes

    def _read(self, extent: Extent) -> torch.Tensor:
        """A part, in memory."""
        size, free = self.rows * extent.row_bytes, free_host_bytes()
        if size > free:
            raise DoesNotFitError(HOST, size, free, "table.resident_scales=false reads them from the file, too")
        memory = HostMemory(size, huge_pages=True)
        self.files[extent.file].finish(memory.bytes.numpy(), (extent.offset, size, 0), 0)
        return memory.bytes[:size].view(self.row_format.storage_dtype).view(self.rows, -1)
