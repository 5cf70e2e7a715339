"""A table in a file on a disk."""

from __future__ import annotations

import mmap
import warnings
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from engram_exp.errors import ConfigError, DoesNotFitError
from engram_exp.layer.row_format import RowFormat
from engram_exp.machine import page_cache
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.memory import free_host_bytes
from engram_exp.machine.placement import Placement
from engram_exp.machine.requests import OpenFile
from engram_exp.steps.tables.row_file import RowFile
from engram_exp.vocabulary import DISK, HOST


class FileTable:
    """Rows in a file, made below a folder if it is not there yet, and kept for the next run.

    Args:
        rows: of the table.
        row_format: how they are stored.
        seed: the contents follow from it and the row id.
        placement: of what stays in memory.
        path: of the folder.
        resident_scales: keep the scales of split rows in host memory; only values are read from the file.

    Raises:
        ConfigError: the file is not ours, damaged, or cannot be made; or there are no scales apart.
        DoesNotFitError: the scales do not fit into memory.

    parts: the arrays of the file, mapped, so that reading them reads the file; scales that are kept, in memory.
    on_disk: numbers of the parts that are read from the file.
    """

    place = DISK
    huge_page_share = None

    def __init__(
        self, rows: int, row_format: RowFormat, seed: int, placement: Placement, path: Path, resident_scales: bool
    ) -> None:
        if resident_scales and len(row_format.part_widths) == 1:
            remedy = "scales lie in their rows; dtype=fp8 dtype.layout=split has them apart"
            raise ConfigError("table.resident_scales", resident_scales, remedy)
        self.rows, self.row_format, self.seed = rows, row_format, seed
        self.row_file = RowFile(Path(path).expanduser(), rows, row_format, seed)
        self.row_file.ready()
        self.file = OpenFile(str(self.row_file.path), self.row_file.size_bytes)
        self.mapped: mmap.mmap | None = None
        self.on_disk = [0] if resident_scales else list(range(len(row_format.part_widths)))
        self.resident = {1: self._read(1)} if resident_scales else {}

    @cached_property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """Arrays [rows, width of the part]."""
        self.mapped = mmap.mmap(self.file.descriptor, self.file.size_bytes, prot=mmap.PROT_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nobody writes to it
            whole = torch.from_numpy(np.frombuffer(self.mapped, dtype=np.uint8))
        found = []
        for number, width in enumerate(self.row_format.part_widths):
            offset, row_bytes = self.row_file.extents[number]
            part = whole[offset : offset + self.rows * row_bytes].view(self.row_format.storage_dtype)
            found.append(self.resident.get(number, part.view(self.rows, width)))
        return tuple(found)

    @property
    def disk_row_bytes(self) -> int:
        """Bytes of a row that are read from the file."""
        return sum(self.row_file.extents[number].row_bytes for number in self.on_disk)

    def contents(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] that a lookup must return, computed anew."""
        return self.row_format.contents(row_ids, self.seed)

    def make_cold(self) -> None:
        """Leave no page of the file in memory."""
        if self.mapped is not None:
            self.mapped.madvise(mmap.MADV_DONTNEED)  # a mapped page would stay
        page_cache.drop(self.file.descriptor)

    def make_warm(self) -> None:
        """Read the file into the page cache.

        Raises:
            DoesNotFitError: it is larger than the memory that is free.
        """
        free = free_host_bytes()
        if self.file.size_bytes > free:
            raise DoesNotFitError(HOST, self.file.size_bytes, free, "cache_state=as_is, or a smaller model.table_scale")
        page_cache.load(self.file.descriptor)

    def resident_share(self) -> float | None:
        """Share of the file's pages that are in memory now; None where the kernel does not tell."""
        return page_cache.resident_share(self.file.descriptor)

    def _read(self, number: int) -> torch.Tensor:
        """A part, in memory."""
        offset, row_bytes = self.row_file.extents[number]
        size, free = self.rows * row_bytes, free_host_bytes()
        if size > free:
            raise DoesNotFitError(HOST, size, free, "table.resident_scales=false reads them from the file, too")
        memory = HostMemory(size, huge_pages=True)
        self.file.finish(memory.bytes.numpy(), (offset, size, 0), 0)
        return memory.bytes[:size].view(self.row_format.storage_dtype).view(self.rows, -1)
