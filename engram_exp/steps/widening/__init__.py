"""Widening: stored fp8 rows -> embeddings in the compute dtype, exact to the bit, where the lookup does not do it.

It stands before the projection, on the side of the link where the projection runs, so that fp8 bytes cross the link.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement, has_triton
from engram_exp.steps.widening.step import whole_rows


def build_widening(
    row_format: RowFormat, max_tokens: int, columns: int, placement: Placement
) -> Callable[..., torch.Tensor]:
    """What turns stored rows [T, H * width], or their values and scales apart, into embeddings [T, H * D], in the
    fastest way that there is."""
    if placement.device.type == "cuda" and has_triton():
        from engram_exp.steps.widening.triton import TritonWidening

        return TritonWidening(row_format, max_tokens, columns, placement)
    if placement.device.type == "cpu" and row_format.dtype == torch.bfloat16:
        from engram_exp.steps.widening.numba import NumbaWidening

        return NumbaWidening(row_format, max_tokens, columns, placement)
    return lambda *stored: row_format.widen(whole_rows(row_format, *stored)).flatten(1)
