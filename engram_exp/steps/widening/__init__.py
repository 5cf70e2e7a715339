"""Widening: stored fp8 rows -> embeddings in the compute dtype, exact to the bit.

It stands before the projection, on the side of the link where the projection runs, so that fp8 bytes cross the link.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement, has_triton


def build_widening(
    row_format: RowFormat, max_tokens: int, columns: int, placement: Placement
) -> Callable[[torch.Tensor], torch.Tensor]:
    """What turns stored rows [T, H * width] into embeddings [T, H * D], in the fastest way that there is."""
    if placement.device.type == "cuda" and has_triton():
        from engram_exp.steps.widening.triton import TritonWidening

        return TritonWidening(row_format, max_tokens, columns, placement)
    if placement.device.type == "cpu" and row_format.dtype == torch.bfloat16:
        from engram_exp.steps.widening.numba import NumbaWidening

        return NumbaWidening(row_format, max_tokens, columns, placement)
    return lambda rows: row_format.widen(rows.view(-1, row_format.width)).view(len(rows), -1)
