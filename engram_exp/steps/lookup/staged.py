"""PyTorch's index_select into fresh pinned memory, as an engine stages rows before it copies them."""

from __future__ import annotations

import torch

from engram_exp.machine.placement import Placement
from engram_exp.stage import Tensors
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.tables.host import HostTable


class StagedLookup(Lookup):
    """Gathers on PyTorch's CPU threads into memory that PyTorch's allocator hands out for each call, pinned if the
    placement says so.

    Args:
        table: in host memory.
        max_tokens, columns: T, at most, and H.
        placement: of the output.
        apart: return values and scales that lie in arrays of their own as two tensors, and not side by side.
    """

    fresh = True

    def __init__(self, table: HostTable, max_tokens: int, columns: int, placement: Placement, apart: bool) -> None:
        placement.require("cpu", "lookup")
        self.apart, self.parts, self.pinned = apart, table.parts, placement.pinned
        self.widths = table.row_format.part_widths

    def __call__(self, row_ids: torch.Tensor) -> Tensors:
        """Stored rows [T, H * width], or values [T, H * D] and scales [T, H * S], of row ids [B, L, H], in memory of
        their own."""
        flat = row_ids.view(-1)
        if self.apart:
            targets = results = [self._empty(len(flat), width) for width in self.widths]
        else:
            results = [self._empty(len(flat), sum(self.widths))]
            targets = list(results[0].split(self.widths, dim=1))
        for part, target in zip(self.parts, targets, strict=True):
            torch.index_select(part, 0, flat, out=target)
        return tuple(result.view(row_ids.shape[0] * row_ids.shape[1], -1) for result in results)

    def _empty(self, rows: int, width: int) -> torch.Tensor:
        return torch.empty(rows, width, dtype=self.parts[0].dtype, pin_memory=self.pinned)
