"""One launch that takes each row from near memory, where there is a copy of it, or else from the table."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from engram_exp.steps.lookup.words import Part

ROWS, WARPS = 32, 4  # of a program


def gather_near_or_far(
    parts: list[Part],
    near: torch.Tensor,
    slots: torch.Tensor,
    row_ids: torch.Tensor,
    out: torch.Tensor,
    counts: torch.Tensor,
    *,
    last: torch.Tensor | None = None,
) -> None:
    """Copy the rows of row ids [N] to `out` [N, words].

    Nothing that the launch reads is written in it but `counts`: its first number by atomic additions, its second by one
    program.

    Args:
        parts: of the table, which the GPU can read.
        near: copies of whole rows, [K, words].
        slots: of each row id its copy's number [N], K and more: it has none; or, of each of H columns that row ids take
            turns in, [3, H]: its first row id, of how many rows from there on there are copies, and the first of them.
        row_ids: inside of the table.
        out: overwritten.
        counts: int64 [2]: how many of the row ids made no row cross the link, and how many there were, is added to it.
        last: the number [1] of the last of the copies that were read through the link for this call, if any were.
    """
    count, columns = len(row_ids), slots.shape[1] if slots.ndim == 2 else 0
    for number, (array, first_word) in enumerate(parts):
        words = array.shape[1]
        _gather[(triton.cdiv(count, ROWS),)](
            array, near, slots, row_ids, out, counts, slots if last is None else last, count, len(near),
            COLUMNS=columns, COUNTS=number == 0, WAS_READ=last is not None, WORDS=words, FIRST_WORD=first_word,
            BLOCK_WORDS=triton.next_power_of_2(words), LINE_WORDS=out.shape[1], ROWS=ROWS, num_warps=WARPS,
        )  # fmt: skip


@triton.jit
def _gather(  # type: ignore[no-untyped-def]
    table,
    near,
    slots,
    row_ids,
    out,
    counts,
    last,
    count,
    copies,
    COLUMNS: tl.constexpr,
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
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = index < count
    row_id = tl.load(row_ids + index, mask=inside, other=0).to(tl.int64)
    if COLUMNS > 0:
        column = index % COLUMNS
        within = row_id - tl.load(slots + column)
        is_near = inside & (within < tl.load(slots + COLUMNS + column))
        slot = within + tl.load(slots + 2 * COLUMNS + column)
    else:
        slot = tl.load(slots + index, mask=inside, other=0).to(tl.int64)
        is_near = inside & (slot < copies)
    is_far = inside & (is_near == 0)
    kept = tl.load(near + slot[:, None] * LINE_WORDS + FIRST_WORD + word, mask=is_near[:, None] & is_word, other=0)
    stored = tl.load(table + row_id[:, None] * WORDS + word, mask=is_far[:, None] & is_word, other=0)
    target = out + index.to(tl.int64)[:, None] * LINE_WORDS + FIRST_WORD + word
    tl.store(target, tl.where(is_near[:, None], kept, stored), mask=inside[:, None] & is_word)
    if COUNTS:
        spared = tl.sum(is_near.to(tl.int64), 0)
        if tl.program_id(0) == 0:
            tl.store(counts + 1, tl.load(counts + 1) + count)
            if WAS_READ:
                spared -= tl.minimum(tl.load(last) + 1, copies)
        tl.atomic_add(counts, spared, sem="relaxed")
