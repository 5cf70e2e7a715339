"""Rows of every rank's share in one kernel: it has the address of each."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from engram_exp.layer.shards import Shards
from engram_exp.steps.lookup.words import Words


class PeerKernel:
    """Copies rows from the memory of all ranks into a buffer.

    Args:
        table: with the shares of all ranks, in memory that this rank's device can read.
        shards: who holds which rows.
        rows: the buffer, [T * H, width].
        rows_per_program, warps, programs: of the launch, as `TritonLookup` has them.
    """

    def __init__(
        self,
        table: Any,
        shards: Shards,
        rows: torch.Tensor,
        rows_per_program: int,
        warps: int,
        programs: int | None,
    ) -> None:
        self.shards, self.launch = shards, (rows_per_program, warps, programs)
        self.words = Words(table.row_format)
        self.out = rows.view(self.words.dtype)
        self.of_ranks = table.of_ranks  # the kernel has their addresses alone
        self.bases = [self._bases(part, rows.device) for part in range(len(table.parts))]

    def _bases(self, part: int, device: torch.device) -> torch.Tensor:
        """The address that row 0 of the table would have, int64: by column, or by rank where rows are shared out."""
        row_bytes = self.words.per_part[part] * self.words.dtype.itemsize
        addresses = torch.tensor([parts[part].data_ptr() for parts in self.of_ranks], dtype=torch.int64)
        shifts = torch.from_numpy(self.shards.shifts()) * row_bytes
        if self.shards.by_rows:
            return (addresses + shifts).to(device)
        for rank, address in enumerate(addresses):
            shifts[self.shards.columns_of(rank)] += address
        return shifts.to(device)

    def __call__(self, row_ids: torch.Tensor) -> None:
        """Fill the buffer with the rows of row ids [T, H] inside of the table."""
        rows_per_program, warps, programs = self.launch
        blocks = triton.cdiv(row_ids.numel(), rows_per_program)
        if not blocks:
            return
        for part, bases in enumerate(self.bases):
            _gather_kernel[(min(blocks, programs or blocks),)](
                bases,
                row_ids,
                self.out,
                row_ids.numel(),
                COLUMNS=self.shards.columns,
                STRETCH=self.shards.stretch if self.shards.by_rows else 0,
                WORDS=self.words.per_part[part],
                BLOCK_WORDS=triton.next_power_of_2(self.words.per_part[part]),
                FIRST_WORD=self.words.first[part],
                OUT_WORDS=self.words.per_row,
                ROWS=rows_per_program,
                num_warps=warps,
            )


@triton.jit
def _gather_kernel(  # type: ignore[no-untyped-def]
    bases,
    row_ids,
    out,
    count,
    COLUMNS: tl.constexpr,
    STRETCH: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    FIRST_WORD: tl.constexpr,
    OUT_WORDS: tl.constexpr,
    ROWS: tl.constexpr,
):
    word = tl.arange(0, BLOCK_WORDS)[None, :]
    for block in range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0)):
        index = block * ROWS + tl.arange(0, ROWS)
        inside = index < count
        row = tl.load(row_ids + index, mask=inside, other=0).to(tl.int64)
        share = index % COLUMNS
        if STRETCH > 0:
            share = (row // STRETCH).to(tl.int32)
        base = tl.load(bases + share, mask=inside, other=0).to(tl.pointer_type(out.dtype.element_ty))
        mask = inside[:, None] & (word < WORDS)
        values = tl.load(base[:, None] + row[:, None] * WORDS + word, mask=mask)
        tl.store(out + index.to(tl.int64)[:, None] * OUT_WORDS + FIRST_WORD + word, values, mask=mask)
