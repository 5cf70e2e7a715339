"""A set-associative cache of rows in device memory: what it keeps, and the kernels that read and fill it."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from engram_exp.steps.lookup.words import Part
from engram_exp.vocabulary import LFU, STATIC

STAMP_BYTES, HEAD_BYTES, NEXT_BYTES, USES_BYTES = 8, 4, 4, 4
STAMP_BITS = tl.constexpr(40)  # of the numbers that are compared ...
STAMP_MASK = tl.constexpr(2**40 - 1)
MOST_USES = tl.constexpr(2**22 - 1)  # ... and what they tell above these
ROWS_OF_INSERT = 8  # row ids of a program of one warp
EMPTY, HIT = -1, -2


class RowCache:
    """Lines of whole rows, of which a row id belongs into one set: row id modulo the number of sets.

    A call takes two launches of fixed shapes, which a CUDA graph can replay. Nothing that one of them reads is written
    by another program of the same launch, but by atomic operations whose order does not matter; and what a launch
    wrote, the next one on its stream sees:

    - *Read* looks each row id up among its set's tags, copies the row from its line or from the table, and raises the
      line's stamp to that of the row id (an atomic maximum). Row ids that missed are chained, set by set: an atomic
      exchange puts each at the head of its set's chain and hands it the one before. Tags and lines are only read.
    - *Insert*: whoever was chained first in its set, and nobody else, walks that chain: it holds the set's tags and
      stamps in registers, puts each row into the line with the smallest stamp, unless that is larger than its own, and
      writes the set back. So one program writes to a set, and what it copies into lines are the rows that the first
      launch returned. It leaves the chain empty.

    Stamps count row ids through all calls. A set therefore ends with those of its rows that were asked for last,
    whatever the order of its chain: a row that belongs to them finds, when its last use is inserted, a line with a
    smaller stamp, and none of the others can displace it again. That is what a least-recently-used cache holds which
    takes one row id after the other. But a call hits only what was there when it began: of a row that misses, each
    repetition in the same call misses, too.

    With `lfu`, uses count first, and stamps among equals: *read* adds one to the uses of a line for each row id that
    hits it, and rows that come in begin with one more than the least used line of their set had. So whatever is not
    asked for again goes in the end: those that come in begin ever higher (LFU with dynamic aging). All that is compared
    is fixed before *insert* begins, and so is what a set ends with.

    Args:
        sets, ways: lines are `sets * ways`.
        words: of a row.
        word_dtype, row_id_dtype: of a word and of a tag.
        max_row_ids: of a call, at most.
        device: where all of it lies.
        policy: lru, lfu; static: nothing is inserted, `pin` says what is kept.
    """

    def __init__(
        self,
        sets: int,
        ways: int,
        words: int,
        word_dtype: torch.dtype,
        row_id_dtype: torch.dtype,
        max_row_ids: int,
        device: torch.device,
        policy: str,
    ) -> None:
        self.sets, self.ways, self.words = sets, ways, words
        self.fills, self.counts_uses = fills, counts_uses = policy != STATIC, policy == LFU
        self.tags = torch.full((sets, ways), EMPTY, dtype=row_id_dtype, device=device)
        self.lines = torch.zeros(sets * ways, words, dtype=word_dtype, device=device)
        self.stamps = torch.full((sets, ways) if fills else (1, 1), EMPTY, dtype=torch.int64, device=device)
        self.uses = torch.zeros((sets, ways) if counts_uses else (1, 1), dtype=torch.int32, device=device)
        self.heads = torch.full((sets if fills else 1,), EMPTY, dtype=torch.int32, device=device)
        self.next = torch.empty(max_row_ids if fills else 1, dtype=torch.int32, device=device)
        self.clock = torch.zeros(2, dtype=torch.int64, device=device)  # of the read, and of the insert behind it
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)  # row ids so far: that hit, and all

    @staticmethod
    def set_bytes(ways: int, row_bytes: int, row_id_bytes: int, policy: str) -> int:
        """Bytes of a set: lines, tags and, if it is filled, stamps, uses and the head of its chain."""
        filling = 0 if policy == STATIC else HEAD_BYTES + ways * (STAMP_BYTES + USES_BYTES * (policy == LFU))
        return ways * (row_bytes + row_id_bytes) + filling

    def empty(self) -> None:
        """Forget all rows."""
        self.tags.fill_(EMPTY)
        self.stamps.fill_(EMPTY)
        self.uses.zero_()

    def pin(self, row_ids: torch.Tensor, rows: torch.Tensor, first: int = 0) -> None:
        """Keep rows [N, words] of row ids [N], or of no row where they are -1, in the lines from `first` on."""
        lines = slice(first, first + len(row_ids))
        self.tags.view(-1)[lines] = row_ids.to(self.tags)
        self.lines[lines] = rows.to(self.lines.device)

    def misses(self, row_ids: torch.Tensor, out: torch.Tensor, rows: int, warps: int) -> torch.Tensor:
        """Those of row ids [N] that will miss, in their places in `out` [N], and HIT in the places of the others.

        Args:
            row_ids: inside of the table.
            out: overwritten; of their dtype.
            rows, warps: row ids and warps of a program.
        """
        count = len(row_ids)
        _probe[(triton.cdiv(count, rows),)](
            row_ids, out, self.tags, count, self.sets, WAYS=self.ways, ROWS=rows, num_warps=warps
        )
        return out[:count]

    def __call__(
        self,
        parts: list[Part],
        row_ids: torch.Tensor,
        out: torch.Tensor,
        rows: int,
        grid: Any,
        warps: int,
        numbers: torch.Tensor | None = None,
    ) -> None:
        """Copy the rows of row ids [N] to `out` [N, words], and insert those that missed.

        Args:
            parts: of the table, or copies of the rows that miss.
            row_ids: inside of the table.
            out: overwritten.
            rows: row ids that a program of the first launch takes at a time; a power of two.
            grid, warps: of that launch.
            numbers: of the copies, [N]: which of them each row id that misses takes; None: `parts` are of the table.
        """
        count = len(row_ids)
        state = self.tags, self.lines, self.stamps, self.uses, self.heads, self.next, self.clock
        sizes = {"WAYS": self.ways, "LINE_WORDS": self.words, "COUNTS_USES": self.counts_uses}
        for number, (array, first_word) in enumerate(parts):
            words = array.shape[1]
            _read[grid](
                array, row_ids, row_ids if numbers is None else numbers, out, *state, self.counts, count, self.sets,
                **sizes, ROWS=rows, WORDS=words, BLOCK_WORDS=triton.next_power_of_2(words), FIRST_WORD=first_word,
                COUNTS=number == 0, FILLS=self.fills and number == 0, num_warps=warps,
            )  # fmt: skip
        if self.fills:
            _insert[(triton.cdiv(count, ROWS_OF_INSERT),)](
                row_ids, out, *state, count, self.sets, **sizes, ROWS=ROWS_OF_INSERT,
                BLOCK_WORDS=triton.next_power_of_2(self.words), num_warps=1,
            )  # fmt: skip


@triton.jit
def _find(row_id, inside, tags, sets, WAYS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which row ids hit, and the line of each that does."""
    way = tl.arange(0, WAYS)[None, :]
    first_line = (row_id % sets).to(tl.int64) * WAYS
    found = tl.load(tags + first_line[:, None] + way) == row_id[:, None]  # at most one: no set holds a row twice
    return inside & (tl.sum(found.to(tl.int32), 1) > 0), first_line + tl.sum(tl.where(found, way, 0), 1)


@triton.jit
def _probe(  # type: ignore[no-untyped-def]
    row_ids, out, tags, count, sets, WAYS: tl.constexpr, ROWS: tl.constexpr
):
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = index < count
    row_id = tl.load(row_ids + index, mask=inside, other=0)
    is_hit, _ = _find(row_id, inside, tags, sets, WAYS)
    tl.store(out + index, tl.where(is_hit, -2, row_id), mask=inside)  # HIT


@triton.jit
def _read(  # type: ignore[no-untyped-def]
    table,
    row_ids,
    numbers,
    out,
    tags,
    lines,
    stamps,
    uses,
    heads,
    chain,
    clock,
    counts,
    count,
    sets,
    WAYS: tl.constexpr,
    LINE_WORDS: tl.constexpr,
    COUNTS_USES: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
    FIRST_WORD: tl.constexpr,
    COUNTS: tl.constexpr,
    FILLS: tl.constexpr,
):
    word = tl.arange(0, BLOCK_WORDS)[None, :]
    now = tl.load(clock)
    if FILLS and tl.program_id(0) == 0:
        tl.store(clock + 1, now)  # which nobody reads before the next launch
    if COUNTS and tl.program_id(0) == 0:
        tl.store(counts + 1, tl.load(counts + 1) + count)
    hits = tl.zeros([1], tl.int64)
    for block in range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0)):
        index = block * ROWS + tl.arange(0, ROWS)
        inside = index < count
        row_id = tl.load(row_ids + index, mask=inside, other=0)
        is_hit, line = _find(row_id, inside, tags, sets, WAYS)
        is_word = word < WORDS
        kept = tl.load(lines + line[:, None] * LINE_WORDS + FIRST_WORD + word, mask=is_hit[:, None] & is_word, other=0)
        missed = inside & (is_hit == 0)
        number = tl.load(numbers + index, mask=missed, other=0).to(tl.int64)
        stored = tl.load(table + number[:, None] * WORDS + word, mask=missed[:, None] & is_word, other=0)
        values = tl.where(is_hit[:, None], kept, stored)
        target = out + index.to(tl.int64)[:, None] * LINE_WORDS + FIRST_WORD + word
        tl.store(target, values, mask=inside[:, None] & is_word)
        hits += tl.sum(is_hit.to(tl.int64), 0)
        if FILLS:
            tl.atomic_max(stamps + line, now + index, mask=is_hit, sem="relaxed")
            if COUNTS_USES:
                tl.atomic_add(uses + line, 1, mask=is_hit, sem="relaxed")
            before = tl.atomic_xchg(heads + row_id % sets, index, mask=missed, sem="relaxed")
            tl.store(chain + index, tl.where(is_hit, -2, before), mask=inside)  # HIT
    if COUNTS:
        tl.atomic_add(counts + tl.arange(0, 1), hits, sem="relaxed")


@triton.jit
def _insert(  # type: ignore[no-untyped-def]
    row_ids,
    rows,
    tags,
    lines,
    stamps,
    uses,
    heads,
    chain,
    clock,
    count,
    sets,
    WAYS: tl.constexpr,
    LINE_WORDS: tl.constexpr,
    COUNTS_USES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_WORDS: tl.constexpr,
):
    way = tl.arange(0, WAYS)[None, :]
    word = tl.arange(0, BLOCK_WORDS)[None, :]
    now = tl.load(clock + 1)
    if tl.program_id(0) == 0:
        tl.store(clock, now + count)  # which nobody reads before the next launch
    index = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    owns = tl.load(chain + index, mask=index < count, other=-2) == -1  # EMPTY: nobody was chained before it
    of_set = tl.load(row_ids + index, mask=owns, other=0) % sets
    line = of_set.to(tl.int64)[:, None] * WAYS + way
    held = tl.load(tags + line, mask=owns[:, None], other=-1)
    stamp = tl.load(stamps + line, mask=owns[:, None], other=-1)
    at = tl.load(heads + of_set, mask=owns, other=-1)
    begins = tl.zeros([ROWS], tl.int64) + now
    if COUNTS_USES:  # above the stamps, of which they leave the order among equals
        many = tl.minimum(tl.load(uses + line, mask=owns[:, None], other=0), MOST_USES).to(tl.int64)
        begins += (tl.min(many, 1) + 1) << STAMP_BITS
        stamp += many << STAMP_BITS
    tl.debug_barrier()  # every thread has read what is written below
    tl.store(heads + of_set, tl.full([ROWS], -1, tl.int32), mask=owns)
    while tl.max(at, 0) >= 0:
        here = at >= 0
        row_id = tl.load(row_ids + at, mask=here, other=0)
        used = begins + at
        found = held == row_id[:, None]
        is_held = tl.sum(found.to(tl.int32), 1) > 0
        place = tl.where(is_held, tl.sum(tl.where(found, way, 0), 1), tl.argmin(stamp, 1))
        there = (way == place[:, None]) & (stamp < used[:, None]) & here[:, None]
        comes_in = (tl.sum(there.to(tl.int32), 1) > 0) & (is_held == 0)
        stamp = tl.where(there, used[:, None], stamp)
        held = tl.where(there & comes_in[:, None], row_id[:, None], held)
        mask = comes_in[:, None] & (word < LINE_WORDS)
        values = tl.load(rows + at.to(tl.int64)[:, None] * LINE_WORDS + word, mask=mask, other=0)
        # One thread writes a word of all lines of a set, one line after the other: the last that came in stays.
        first_word = (of_set.to(tl.int64) * WAYS + place) * LINE_WORDS
        tl.store(lines + first_word[:, None] + word, values, mask=mask)
        at = tl.load(chain + at, mask=here, other=-1)
    tl.store(tags + line, held, mask=owns[:, None])
    if COUNTS_USES:
        is_line = held >= 0
        tl.store(uses + line, tl.where(is_line, stamp >> STAMP_BITS, 0).to(tl.int32), mask=owns[:, None])
        stamp = tl.where(is_line, stamp & STAMP_MASK, -1)
    tl.store(stamps + line, stamp, mask=owns[:, None])
