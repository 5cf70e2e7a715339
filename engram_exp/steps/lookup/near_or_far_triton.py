"""One launch that takes each row from near memory, where there is a copy of it, or else from the table."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engram_exp.steps.lookup.words import Part


def gather_near_or_far(
    parts: list[Part],
    near: torch.Tensor,
    slots: torch.Tensor,
    row_ids: torch.Tensor,
    out: torch.Tensor,
    counts: torch.Tensor,
    rows: int,
    warps: int,
    *,
    programs: int | None = None,
    places: torch.Tensor | None = None,
    last: torch.Tensor | None = None,
) -> None:
    """Copy the rows of row ids [N] to `out` [N, words].

    Nothing that the launch reads is written in it but `counts`: its first number by atomic additions, its second by one
    program.

    Args:
        parts: of the table, which the GPU can read.
        near: copies of whole rows, [K, words].
        slots: of each row id its copy's number [N], K and more: it has none; or, of each of H columns, [3, H]: its
            first row id, ascending, of how many rows from there on there are copies, and the first of them.
        row_ids: inside of the table.
        out: overwritten.
        counts: int64 [2]: how many of the row ids made no row cross the link, and how many there were, is added to it.
        rows, warps, programs: row ids that a program takes at a time, its warps, and programs at most; None: one for
            each so many row ids.
        places: of the rows in `out`, [N]; None: in the order of the row ids.
        last: the number [1] of the last of the copies that were read through the link for this call, if any were.
    """
    count, columns = len(row_ids), slots.shape[1] if slots.ndim == 2 else 0
    for number, (array, first_word) in enumerate(parts):
        words, blocks = array.shape[1], triton.cdiv(count, rows)
        _gather[(min(blocks, programs or blocks),)](
            array, near, slots, row_ids, row_ids if places is None else places, out, counts,
            slots if last is None else last, count, len(near), COLUMNS=columns,
            BLOCK_COLUMNS=triton.next_power_of_2(max(columns, 1)), ORDERED=places is not None,
            COUNTS=number == 0, WAS_READ=last is not None, WORDS=words, FIRST_WORD=first_word,
            BLOCK_WORDS=triton.next_power_of_2(words), LINE_WORDS=out.shape[1], ROWS=rows, num_warps=warps,
        )  # fmt: skip


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    table,
    near,
    slots,
    row_ids,
    places,
    out,
    counts,
    last,
    count,
    copies,
    COLUMNS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    ORDERED: tl.constexpr,
    COUNTS: tl.constexpr,
    WAS_READ: tl.constexpr,
    WORDS: tl.constexpr,
    FIRST_WORD: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    LINE_WORDS: tl.constexpr,
    ROWS: tl.constexpr,
):
    word = tl.arange(0, BLOCK_WORDS)[None, :]
    is_word = word < WORDS
    spared = tl.zeros([1], tl.int64)
    for block in range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0)):
        index = block * ROWS + tl.arange(0, ROWS)
        inside = index < count
        row_id = tl.load(row_ids + index, mask=inside, other=0).to(tl.int64)
        place = index
        if ORDERED:
            place = tl.load(places + index, mask=inside, other=0)
        if COLUMNS > 0:
            number = tl.arange(0, BLOCK_COLUMNS)[None, :]
            first_row = tl.load(slots + number, mask=number < COLUMNS, other=2**62)
            column = tl.sum((first_row <= row_id[:, None]).to(tl.int32), 1) - 1
            within = row_id - tl.load(slots + column)
            is_near = inside & (within < tl.load(slots + COLUMNS + column))
            slot = within + tl.load(slots + 2 * COLUMNS + column)
        else:
            slot = tl.load(slots + index, mask=inside, other=0).to(tl.int64)
            is_near = inside & (slot < copies)
        is_far = inside & (is_near == 0)
        kept = tl.load(near + slot[:, None] * LINE_WORDS + FIRST_WORD + word, mask=is_near[:, None] & is_word, other=0)
        stored = tl.load(table + row_id[:, None] * WORDS + word, mask=is_far[:, None] & is_word, other=0)
        target = out + place.to(tl.int64)[:, None] * LINE_WORDS + FIRST_WORD + word
        tl.store(target, tl.where(is_near[:, None], kept, stored), mask=inside[:, None] & is_word)
        spared += tl.sum(is_near.to(tl.int64), 0)
    if COUNTS:
        if tl.program_id(0) == 0:
            tl.store(counts + 1, tl.load(counts + 1) + count)
            if WAS_READ:
                spared -= tl.minimum(tl.load(last) + 1, copies)
        tl.atomic_add(counts + tl.arange(0, 1), spared, sem="relaxed")
