"""Compiled, over rows on as many threads as pay, into bfloat16 on the CPU: value and scale are looked up and
multiplied; with one scale for the whole table, their product is."""

from __future__ import annotations

from typing import Any

import torch
from numba import prange

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.steps.bfloat16 import float_to_bits
from engram_exp.steps.loops import Loop, threads_for
from engram_exp.steps.widening.step import Widening
from engram_exp.vocabulary import AUTO

# From so many rows on, all threads are taken. It rests on two cores alone, used by others, too, and called once in
# 2 ms: one thread took 0.7 of the time of two for 384 rows of 256 values, 0.9 for 1,536, and 1.1 to 1.2 for 6,144.
TOGETHER_FROM_ROWS = 1024


class NumbaWidening(Widening):
    """Widens into a kept buffer."""

    def __init__(self, row_format: RowFormat, max_tokens: int, columns: int, placement: Placement) -> None:
        placement.require("cpu", "widening")
        byte = torch.arange(256).to(torch.uint8)
        self.row_format = row_format
        self.value_of = byte.view(torch.float8_e4m3fn).float().numpy()
        self.scale_of = byte.view(torch.float8_e8m0fnu).float().numpy()
        if row_format.values_per_scale is None:
            self.bits_of = row_format.widen(byte[:, None]).view(torch.uint16).flatten().numpy()
        self.embeddings = placement.empty(max_tokens, columns * row_format.values, dtype=torch.bfloat16)

    def __call__(self, *stored: torch.Tensor) -> torch.Tensor:
        """Embeddings [T, H * D] of stored rows [T, H * width], or of values and scales apart; overwritten by the next
        call."""
        row_format, out = self.row_format, self.embeddings[: len(stored[0])]
        values, scales, first_scale = row_format.values_and_scales(*stored)
        bits = out.view(-1, row_format.values).view(torch.uint16).numpy()
        threads = threads_for(AUTO, len(bits), TOGETHER_FROM_ROWS)
        if row_format.values_per_scale is None:
            _look_up(threads, values.numpy(), self.bits_of, bits)
        else:
            tables = self.value_of, self.scale_of, row_format.values_per_scale
            _widen(threads, values.numpy(), scales.numpy(), first_scale, *tables, bits)
        return out


@Loop
def _widen(
    values: Any, scales: Any, first_scale: int, value_of: Any, scale_of: Any, values_per_scale: int, out: Any
) -> None:
    rows, width = out.shape
    for row in prange(rows):
        for first in range(0, width, values_per_scale):
            scale = scale_of[scales[row, first_scale + first // values_per_scale]]
            for value in range(first, min(width, first + values_per_scale)):
                out[row, value] = float_to_bits(value_of[values[row, value]] * scale)


@Loop
def _look_up(rows: Any, bits_of: Any, out: Any) -> None:
    for row in prange(len(rows)):
        for value in range(out.shape[1]):
            out[row, value] = bits_of[rows[row, value]]
