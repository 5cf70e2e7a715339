"""A table in a file that is made for it."""

from __future__ import annotations

from pathlib import Path

import torch

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.machine.requests import OpenFile
from engram_exp.steps.tables.on_disk import DiskTable
from engram_exp.steps.tables.row_file import RowFile


class FileTable(DiskTable):
    """Rows in a file, made below a folder if it is not there yet, and kept for the next run.

    Args:
        rows: of the table.
        row_format: how they are stored.
        seed: the contents follow from it and the row id.
        placement: of what stays in memory.
        path: of the folder.
        resident_scales: as `DiskTable` has it.

    Raises:
        ConfigError: the file is not ours, damaged, or cannot be made; or as `DiskTable`.
        DoesNotFitError: as `DiskTable`.
    """

    def __init__(
        self, rows: int, row_format: RowFormat, seed: int, placement: Placement, path: Path, resident_scales: bool
    ) -> None:
        self.seed = seed
        row_file = RowFile(Path(path).expanduser(), rows, row_format, seed)
        row_file.ready()
        files = [OpenFile(str(row_file.path), row_file.size_bytes)]
        super().__init__(rows, row_format, files, row_file.extents, resident_scales)

    def contents(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] that a lookup must return, computed anew."""
        return self.row_format.contents(row_ids, self.seed)
