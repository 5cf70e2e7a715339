"""On the GPU, in one pass, without fp8 units: every GPU that runs Triton can do it.

An e4m3 byte shifted into a float16 has the right mantissa, subnormals included, and an exponent that is 8 too small.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engram_exp.layer.row_format import RowFormat
from engram_exp.machine.placement import Placement
from engram_exp.steps.widening.step import Widening

BLOCK_VALUES = 1024


class TritonWidening(Widening):
    """Widens into a kept buffer."""

    def __init__(self, row_format: RowFormat, max_tokens: int, columns: int, placement: Placement) -> None:
        placement.require_triton("widening")
        self.row_format = row_format
        self.embeddings = placement.empty(max_tokens, columns * row_format.values, dtype=row_format.dtype)
        self.block = triton.next_power_of_2(row_format.values)
        self.rows_per_program = max(1, BLOCK_VALUES // self.block)

    def __call__(self, *stored: torch.Tensor) -> torch.Tensor:
        """Embeddings [T, H * D] of stored rows [T, H * width], or of values and scales apart; overwritten by the next
        call."""
        row_format, out = self.row_format, self.embeddings[: len(stored[0])]
        count = out.numel() // row_format.values
        values, scales, first_scale = row_format.values_and_scales(*stored)
        _widen_kernel[(triton.cdiv(count, self.rows_per_program),)](
            values,
            scales,
            out,
            count,
            VALUES=row_format.values,
            VALUES_WIDTH=values.shape[1],
            SCALES_WIDTH=scales.shape[1],
            FIRST_SCALE=first_scale,
            VALUES_PER_SCALE=row_format.values_per_scale,
            ONE_SCALE=row_format.one_scale,
            BLOCK=self.block,
            ROWS=self.rows_per_program,
        )
        return out


@triton.jit
def _widen_kernel(  # type: ignore[no-untyped-def]
    values,
    scales,
    out,
    count,
    VALUES: tl.constexpr,
    VALUES_WIDTH: tl.constexpr,
    SCALES_WIDTH: tl.constexpr,
    FIRST_SCALE: tl.constexpr,
    VALUES_PER_SCALE: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    value = tl.arange(0, BLOCK)[None, :]
    mask = (row < count) & (value < VALUES)
    byte = tl.load(values + row * VALUES_WIDTH + value, mask=mask, other=0)
    if ONE_SCALE is None:
        scale = FIRST_SCALE + value // VALUES_PER_SCALE
        exponent = tl.load(scales + row * SCALES_WIDTH + scale, mask=mask, other=0)
        widened = e4m3_as_float(byte) * ue8m0_as_float(exponent)
    else:
        widened = e4m3_as_float(byte) * tl.full([1, 1], ONE_SCALE, tl.float32)
    tl.store(out + row * VALUES + value, widened.to(out.dtype.element_ty), mask=mask)


@triton.jit
def e4m3_as_float(byte):  # type: ignore[no-untyped-def]
    """The float32 of e4m3 bytes."""
    wide = byte.to(tl.int16)
    half = ((wide & 0x80) << 8 | (wide & 0x7F) << 7).to(tl.float16, bitcast=True)
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)


@triton.jit
def ue8m0_as_float(byte):  # type: ignore[no-untyped-def]
    """The float32 of ue8m0 bytes."""
    exponent = byte.to(tl.int32)
    bits = tl.where(exponent == 0, 0x00400000, exponent << 23)  # 2^-127 is subnormal
    return tl.where(exponent == 255, 0x7FC00000, bits).to(tl.float32, bitcast=True)
