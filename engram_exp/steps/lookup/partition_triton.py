"""Row ids grouped by the stretch of the table that their rows lie in: coarser than a sort, and quicker."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engram_exp.steps.lookup.order import bucket_shift

BLOCK = 256  # row ids of a program


class Partition:
    """Groups row ids into buckets of neighbouring rows, in three launches of fixed shapes, so that a CUDA graph can
    replay them. Inside a bucket their order is any.

    Args:
        rows: of the table.
        row_bytes: of a stored row.
        max_row_ids: of a call, at most.
        device: of the row ids.
        shift: a bucket holds the rows whose ids are equal without their last so many bits; None: `bucket_shift`.
    """

    def __init__(
        self, rows: int, row_bytes: int, max_row_ids: int, device: torch.device, shift: int | None = None
    ) -> None:
        self.shift = bucket_shift(rows, row_bytes) if shift is None else shift
        self.buckets = ((rows - 1) >> self.shift) + 1
        self.counts = torch.zeros(self.buckets, dtype=torch.int32, device=device)  # as each call leaves them
        self.starts = torch.empty_like(self.counts)
        self.ranks = torch.empty(max_row_ids, dtype=torch.int32, device=device)

    def __call__(self, row_ids: torch.Tensor, ordered: torch.Tensor, places: torch.Tensor) -> None:
        """Write row ids [N] of the table to `ordered` [N], bucket by bucket, and where each of them stood to `places`
        [N]."""
        count = len(row_ids)
        grid = (triton.cdiv(count, BLOCK),)
        _count[grid](row_ids, self.counts, self.ranks, count, SHIFT=self.shift, BLOCK=BLOCK)
        _add_up[(1,)](self.counts, self.starts, self.buckets, BLOCK=triton.next_power_of_2(self.buckets), num_warps=8)
        _scatter[grid](row_ids, self.starts, self.ranks, ordered, places, count, SHIFT=self.shift, BLOCK=BLOCK)


@triton.jit
def _count(row_ids, counts, ranks, count, SHIFT: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    bucket = tl.load(row_ids + index, mask=inside, other=0) >> SHIFT
    rank = tl.atomic_add(counts + bucket, inside.to(tl.int32), mask=inside, sem="relaxed")
    tl.store(ranks + index, rank, mask=inside)


@triton.jit
def _add_up(counts, starts, buckets, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    bucket = tl.arange(0, BLOCK)
    inside = bucket < buckets
    number = tl.load(counts + bucket, mask=inside, other=0)
    tl.store(starts + bucket, tl.cumsum(number, 0) - number, mask=inside)
    tl.debug_barrier()  # every thread has read its counts
    tl.store(counts + bucket, tl.zeros_like(number), mask=inside)


@triton.jit
def _scatter(  # type: ignore[no-untyped-def]
    row_ids, starts, ranks, ordered, places, count, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < count
    row_id = tl.load(row_ids + index, mask=inside, other=0)
    place = tl.load(starts + (row_id >> SHIFT), mask=inside, other=0) + tl.load(ranks + index, mask=inside, other=0)
    tl.store(ordered + place, row_id, mask=inside)
    tl.store(places + place, index, mask=inside)
