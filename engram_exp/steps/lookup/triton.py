"""A gather on the GPU: from device memory, or from pinned host memory through the link (unified virtual addressing)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
import triton
import triton.language as tl

from engram_exp.machine.placement import Placement, multiprocessors
from engram_exp.stage import Load
from engram_exp.steps.lookup.order import ReadTimes, check_launch, check_order, reading
from engram_exp.steps.lookup.partition_triton import Partition
from engram_exp.steps.lookup.step import Lookup, require_readable, sort_bytes
from engram_exp.steps.lookup.words import Words
from engram_exp.steps.tables import Table
from engram_exp.steps.widening.triton import e4m3_as_float, ue8m0_as_float
from engram_exp.vocabulary import AS_ASKED, SORTED


class TritonLookup(Lookup):
    """Copies rows into a kept device buffer, or widens fp8 rows into it.

    Row ids in order, or at least one stretch of the table after the other, read the link in long runs, and rows that
    are asked for twice cross it once; the rows are written back to their places, so that the order changes nothing but
    the time.

    Args:
        table: in device memory, or in pinned host memory.
        max_tokens: T, at most.
        columns: H.
        placement: the GPU.
        order: of the reads: as_asked, sorted, partitioned, or auto, as `order.reading` has it.
        sort_from_rows: see there.
        rows_per_program: rows that a program has in flight at a time; auto: see there.
        warps: of a program.
        programs: of a launch, at most; each then takes several blocks of rows. None: one for each block;
            multiprocessors: as many as the GPU has; half_beside: or half as many beside others; auto: see there.
        widen: make embeddings of fp8 rows. Rows that are stored in the compute dtype are that already.
        read_times: of this machine; None: they are not known.
        stages: blocks of rows that a program asks for before it waits for the first. What is under way lies in shared
            memory, so that few multiprocessors can have as many rows in flight as many would.
        beside: others use the device or the link meanwhile, as `reading` has it.

    Raises:
        ConfigError: an unknown order, or a number that Triton cannot use.
        SkippedError: the table lies in memory that the GPU cannot read.
    """

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """What it makes, and row ids in order with what a radix sort takes."""
        return {load.stage.side: load.bytes_of(load.stage.makes) + sort_bytes(load)}

    def __init__(
        self,
        table: Table,
        max_tokens: int,
        columns: int,
        placement: Placement,
        order: str,
        sort_from_rows: int | Literal["auto"],
        rows_per_program: int | Literal["auto"],
        warps: int,
        programs: int | Literal["auto", "multiprocessors", "half_beside"] | None,
        widen: bool = False,
        read_times: ReadTimes | None = None,
        beside: bool = False,
        stages: int = 1,
    ) -> None:
        placement.require_triton("lookup")
        check_order(order)
        check_launch(rows_per_program, warps, programs, stages)
        require_readable(table, placement)
        row_format, self.table_rows = table.row_format, len(table.parts[0])
        self.row_bytes = row_format.width * row_format.storage_dtype.itemsize
        widens = widen and row_format.is_fp8
        width = row_format.values if widens else row_format.width
        dtype = row_format.dtype if widens else row_format.storage_dtype
        self.rows = placement.empty(max_tokens * columns, width, dtype=dtype)
        self.out, self.kernels = (self.rows, [_widening(table)]) if widens else _copying(table, self.rows)
        of_rows = partial(
            reading,
            order,
            rows_per_program,
            programs,
            sort_from_rows=sort_from_rows,
            row_bytes=self.row_bytes,
            table=table.place,
            table_bytes=self.table_rows * self.row_bytes,
            multiprocessors=multiprocessors(placement.device),
            beside=beside,
            times=read_times,
        )
        self.reading = cache(of_rows)  # looked up on each call
        self.warps, self.stages = warps, stages
        self.ordered: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # row ids in an order, and their places
        self.partition: Partition | None = None

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width], or embeddings [T, H * D], of row ids [B, L, H] inside of the table; overwritten
        by the next call."""
        flat = row_ids.view(-1)
        how = self.reading(rows=len(flat))
        ordered, places = self._in_order(flat, how.order)
        blocks = triton.cdiv(len(flat), how.rows_per_program)
        grid = (min(blocks, how.programs or blocks),)
        launch = {"ROWS": how.rows_per_program, "STAGES": self.stages, "ORDERED": how.order != AS_ASKED}
        for kernel, arrays, constants in self.kernels:
            kernel[grid](*arrays, ordered, places, self.out, len(flat), **constants, **launch, num_warps=self.warps)
        return self.rows[: len(flat)].view(row_ids.shape[0] * row_ids.shape[1], -1)

    def _in_order(self, row_ids: torch.Tensor, order: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Row ids as they are read, and the places of their rows: not looked at where they are read as asked for."""
        if order == AS_ASKED:
            return row_ids, row_ids
        most = len(self.rows)
        # Of a pipeline's chunks, `auto` may sort some and partition the last.
        if order not in self.ordered:
            place_dtype = torch.int64 if order == SORTED else torch.int32
            self.ordered[order] = row_ids.new_empty(most), row_ids.new_empty(most, dtype=place_dtype)
        ordered, places = (tensor[: len(row_ids)] for tensor in self.ordered[order])
        if order == SORTED:
            torch.sort(row_ids, out=(ordered, places))
            return ordered, places
        if self.partition is None:
            self.partition = Partition(self.table_rows, self.row_bytes, most, row_ids.device)
        self.partition(row_ids, ordered, places)
        return ordered, places


class Kernel(NamedTuple):
    """A kernel, the arrays of the table that it reads, and its constants."""

    function: Any
    arrays: tuple[torch.Tensor, ...]
    constants: Mapping[str, float | None]


def _copying(table: Table, rows: torch.Tensor) -> tuple[torch.Tensor, list[Kernel]]:
    """Stored rows as whole words, and what copies them: a kernel for each part of the table."""
    words = Words(table.row_format)
    kernels = []
    for part, first_word, per_part in zip(table.parts, words.first, words.per_part, strict=True):
        constants = {
            "WORDS": per_part,
            "BLOCK_WORDS": triton.next_power_of_2(per_part),
            "FIRST_WORD": first_word,
            "OUT_WORDS": words.per_row,
        }
        kernels.append(Kernel(_gather_kernel, (part.view(words.dtype),), constants))
    return rows.view(words.dtype), kernels


def _widening(table: Table) -> Kernel:
    """What makes embeddings of fp8 rows, packed or split."""
    row_format = table.row_format
    values, scales, first_scale = row_format.values_and_scales(*table.parts)
    per_scale = min(row_format.values_per_scale or row_format.values, row_format.values)
    scales_of_row = -(-row_format.values // per_scale)
    width = scales.shape[1]
    # Scales that come as one word can be asked for in advance, as values are: single bytes cannot.
    word = {4: torch.int32, 8: torch.int64}.get(scales_of_row)
    if word is not None and width % scales_of_row == first_scale % scales_of_row == 0:
        scales, width, first_scale = scales.view(word), width // scales_of_row, first_scale // scales_of_row
    constants: dict[str, float | None] = {
        "VALUES": row_format.values,
        "VALUES_WIDTH": values.shape[1],
        "SCALES": scales_of_row,
        "SCALES_WIDTH": width,
        "FIRST_SCALE": first_scale,
        "IN_A_WORD": scales.dtype != torch.uint8,
        "PER_SCALE": per_scale,
        "ONE_SCALE": row_format.one_scale,
        "BLOCK_SCALES": triton.next_power_of_2(scales_of_row),
        "BLOCK_PER_SCALE": triton.next_power_of_2(per_scale),
    }
    return Kernel(_gather_and_widen_kernel, (values, scales), constants)


@triton.jit
def _gather_kernel(  # type: ignore[no-untyped-def]
    table,
    row_ids,
    places,
    out,
    count,
    WORDS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    FIRST_WORD: tl.constexpr,
    OUT_WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    ORDERED: tl.constexpr,
):
    word = tl.arange(0, BLOCK_WORDS)[None, :]
    for block in tl.range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0), num_stages=STAGES):
        index = block * ROWS + tl.arange(0, ROWS)
        inside = index < count
        row = tl.load(row_ids + index, mask=inside, other=0).to(tl.int64)
        place = index
        if ORDERED:
            place = tl.load(places + index, mask=inside, other=0)
        mask = inside[:, None]
        if WORDS < BLOCK_WORDS:
            mask = mask & (word < WORDS)
        values = tl.load(table + row[:, None] * WORDS + word, mask=mask)
        tl.store(out + place.to(tl.int64)[:, None] * OUT_WORDS + FIRST_WORD + word, values, mask=mask)


@triton.jit
def _gather_and_widen_kernel(  # type: ignore[no-untyped-def]
    values,
    scales,
    row_ids,
    places,
    out,
    count,
    VALUES: tl.constexpr,
    VALUES_WIDTH: tl.constexpr,
    SCALES: tl.constexpr,
    SCALES_WIDTH: tl.constexpr,
    FIRST_SCALE: tl.constexpr,
    IN_A_WORD: tl.constexpr,
    PER_SCALE: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    BLOCK_SCALES: tl.constexpr,
    BLOCK_PER_SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    STAGES: tl.constexpr,
    ORDERED: tl.constexpr,
):
    scale = tl.arange(0, BLOCK_SCALES)[None, :]
    within = tl.arange(0, BLOCK_PER_SCALE)[None, None, :]
    value = scale[:, :, None] * PER_SCALE + within
    for block in tl.range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0), num_stages=STAGES):
        index = block * ROWS + tl.arange(0, ROWS)
        inside = index < count
        row = tl.load(row_ids + index, mask=inside, other=0).to(tl.int64)
        place = index
        if ORDERED:
            place = tl.load(places + index, mask=inside, other=0)
        mask = inside[:, None, None]
        if BLOCK_SCALES * BLOCK_PER_SCALE > VALUES:
            mask = mask & (within < PER_SCALE) & (value < VALUES)
        byte = tl.load(values + (row * VALUES_WIDTH)[:, None, None] + value, mask=mask, other=0)
        if ONE_SCALE is None:
            exponents = scales + row * SCALES_WIDTH + FIRST_SCALE
            if IN_A_WORD:
                exponent = (tl.load(exponents, mask=inside, other=0)[:, None] >> (8 * scale)).to(tl.uint8)
            else:
                exponent = tl.load(exponents[:, None] + scale, mask=inside[:, None] & (scale < SCALES), other=0)
            widened = e4m3_as_float(byte) * ue8m0_as_float(exponent)[:, :, None]
        else:
            widened = e4m3_as_float(byte) * tl.full([1, 1, 1], ONE_SCALE, tl.float32)
        target = out + (place.to(tl.int64) * VALUES)[:, None, None] + value
        tl.store(target, widened.to(out.dtype.element_ty), mask=mask)
