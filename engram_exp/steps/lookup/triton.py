"""A gather on the GPU: from device memory, or from pinned host memory through the link (unified virtual addressing)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engram_exp.errors import ConfigError, SkippedError
from engram_exp.machine.placement import Placement
from engram_exp.stage import Load
from engram_exp.steps.lookup.order import row_order
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.lookup.words import Words
from engram_exp.steps.tables.device import DeviceTable
from engram_exp.steps.tables.host import HostTable
from engram_exp.vocabulary import HOST, SORTED


class TritonLookup(Lookup):
    """Copies rows into a kept device buffer.

    Sorted row ids read the link in long runs, and rows that are asked for twice cross it once; the rows are written
    back to their places, so that the order changes nothing but the time.

    Args:
        table: in device memory, or in pinned host memory.
        max_tokens: T, at most.
        columns: H.
        placement: the GPU.
        order: of the reads: as_asked, sorted, or auto: sorted from `sort_from_rows` row ids on, where rows come
            through the link; device memory gains nothing from it.
        sort_from_rows: see `order`.
        rows_per_program: rows that a program has in flight at a time.
        warps: of a program.
        programs: of a launch; each then takes several blocks of rows. None: one for each block.

    Raises:
        ConfigError: an unknown order, or a number that Triton cannot use.
        SkippedError: the table lies in memory that the GPU cannot read.
    """

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Rows, and row ids in order with what a radix sort takes."""
        return {load.stage.side: load.bytes_of(load.stage.makes) + load.geometry.sort_bytes(load.tokens)}

    def __init__(
        self,
        table: HostTable | DeviceTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        order: str,
        sort_from_rows: int,
        rows_per_program: int,
        warps: int,
        programs: int | None,
    ) -> None:
        placement.require_triton("lookup")
        _check(order, rows_per_program, warps, programs)
        readable = all(part.device.type == placement.device.type or part.is_pinned() for part in table.parts)
        if not readable:
            raise SkippedError("a kernel reads host memory only where it is pinned: table=pinned or table=huge")
        row_format = table.row_format
        max_rows = max_tokens * columns
        self.rows = placement.empty(max_rows, row_format.width, dtype=row_format.storage_dtype)
        self.words = Words(row_format)
        self.tables = [part.view(self.words.dtype) for part in table.parts]
        self.order, self.sort_from_rows, self.table_place = order, sort_from_rows, table.place
        self.ordered: tuple[torch.Tensor, torch.Tensor] | None = None  # row ids in order, and their places
        self.rows_per_program, self.warps, self.programs = rows_per_program, warps, programs

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H] inside of the table; overwritten by the next call."""
        flat = positions = row_ids.view(-1)
        rows = self.rows[: len(flat)]
        sorts = row_order(self.order, len(flat), self.sort_from_rows, self.table_place) == SORTED
        if sorts:
            if self.ordered is None:
                self.ordered = flat.new_empty(len(self.rows)), flat.new_empty(len(self.rows), dtype=torch.int64)
            flat, positions = (tensor[: len(flat)] for tensor in self.ordered)
            torch.sort(row_ids.view(-1), out=(flat, positions))
        out = rows.view(self.words.dtype)
        blocks = triton.cdiv(len(flat), self.rows_per_program)
        grid = (min(blocks, self.programs or blocks),)
        for table, first_word, words in zip(self.tables, self.words.first, self.words.per_part, strict=True):
            _gather_kernel[grid](
                table,
                flat,
                positions,
                out,
                len(flat),
                WORDS=words,
                BLOCK_WORDS=triton.next_power_of_2(words),
                FIRST_WORD=first_word,
                OUT_WORDS=self.words.per_row,
                ROWS=self.rows_per_program,
                SORTED=sorts,
                num_warps=self.warps,
            )
        return rows.view(row_ids.shape[0] * row_ids.shape[1], -1)


def _check(order: str, rows_per_program: int, warps: int, programs: int | None) -> None:
    row_order(order, 0, 0, HOST)
    for name, number in (("rows_per_program", rows_per_program), ("warps", warps)):
        if number < 1 or number & (number - 1):
            raise ConfigError(f"lookup.{name}", number, "must be a power of two")
    if programs is not None and programs < 1:
        raise ConfigError("lookup.programs", programs, "must be at least 1, or null for one per block of rows")


@triton.jit
def _gather_kernel(  # type: ignore[no-untyped-def]
    table,
    row_ids,
    positions,
    out,
    count,
    WORDS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    FIRST_WORD: tl.constexpr,
    OUT_WORDS: tl.constexpr,
    ROWS: tl.constexpr,
    SORTED: tl.constexpr,
):
    word = tl.arange(0, BLOCK_WORDS)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0)):
        index = block * ROWS + tl.arange(0, ROWS)
        inside = index < count
        row = tl.load(row_ids + index, mask=inside, other=0).to(tl.int64)
        place = index.to(tl.int64)
        if SORTED:
            place = tl.load(positions + index, mask=inside, other=0)
        mask = inside[:, None]
        if WORDS < BLOCK_WORDS:
            mask = mask & (word < WORDS)
        values = tl.load(table + row[:, None] * WORDS + word, mask=mask)
        tl.store(out + place[:, None] * OUT_WORDS + FIRST_WORD + word, values, mask=mask)
