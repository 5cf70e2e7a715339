"""A table in device memory: the yardstick of every offload."""

from __future__ import annotations

import torch

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.steps.tables import fill_spans
from engram_exp.vocabulary import DEVICE


class DeviceTable:
    """Rows in device memory.

    Args:
        rows: of the table.
        row_format: how they are stored.
        seed: the contents follow from it and the row id.
        placement: the device.
    """

    place = DEVICE
    huge_page_share = None

    def __init__(self, rows: int, row_format: RowFormat, seed: int, placement: Placement) -> None:
        self.row_format = row_format
        self.seed = seed
        dtype, widths = row_format.storage_dtype, row_format.part_widths
        self.parts = tuple(torch.empty(rows, width, dtype=dtype, device=placement.device) for width in widths)
        fill_spans(self.parts, row_format, seed, [(0, rows)])

    def contents(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] that a lookup must return, computed anew."""
        return self.row_format.contents(row_ids, self.seed)
