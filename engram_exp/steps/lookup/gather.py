"""A compiled gather into a kept buffer that asks for rows before it needs them, on as many threads as pay."""

from __future__ import annotations

from typing import Any

import torch
from llvmlite import ir
from numba import prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from engram_exp.machine.placement import Placement
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.lookup.words import Words
from engram_exp.steps.loops import Loop, Threads, threads_for
from engram_exp.steps.tables.device import DeviceTable
from engram_exp.steps.tables.host import HostTable
from engram_exp.steps.tables.on_disk import DiskTable
from engram_exp.vocabulary import AUTO

ROWS_AHEAD = 12  # random rows come from memory in about the time that copying so many takes
ROWS_PER_BLOCK = 512  # of one thread at a time
# From so many rows on, auto takes all threads. Called once in 2 ms, rows of 264 bytes from 64 GiB, on 16 virtual cores:
# 1,536 rows take one thread 240 us, 4 threads 143, 8 130, all 16 119; 6,144 rows 747, 236, 170, 109. Threads that spin
# meanwhile gain nothing: 16 take 132 and 118 us (medians of 100; samples not kept). On two cores that others use, too,
# one thread took 0.75 of the time of two for 1,536 rows, 1.0 to 1.3 for 6,144: there, lookup.threads=1 is better.
TOGETHER_FROM_ROWS = 1024
CACHE_LINE_BYTES = 64


class GatherLookup(Lookup):
    """Copies rows into a buffer that is allocated once, pinned if the placement says so.

    Args:
        table: in host memory, or in a mapped file.
        max_tokens, columns: T, at most, and H.
        placement: of the output.
        threads: of the CPU; auto: the calling one for the rows of a small step, else all of the run.
    """

    def __init__(
        self,
        table: HostTable | DeviceTable | DiskTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        threads: Threads = AUTO,
    ) -> None:
        placement.require("cpu", "lookup")
        self.threads = threads
        row_format = table.row_format
        self.rows = placement.empty(max_tokens * columns, row_format.width, dtype=row_format.storage_dtype)
        self.words = Words(row_format)
        self.tables = [part.view(self.words.dtype).numpy() for part in table.parts]
        self._fit(torch.Size([max_tokens, 1, columns]))

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H]; overwritten by the next call.

        Raises:
            IndexError: a row id outside the table.
        """
        if row_ids.shape != self.shape:
            self._fit(row_ids.shape)
        flat = row_ids.numpy().reshape(-1)
        threads = threads_for(self.threads, len(flat), TOGETHER_FROM_ROWS)
        for table, first_word in zip(self.tables, self.words.first, strict=True):
            outside = _gather(threads, table, flat, self.out, first_word)
            if outside:
                raise IndexError(f"{outside} row ids are outside of 0 to {len(table) - 1}")
        return self.result

    def _fit(self, shape: torch.Size) -> None:
        """Views for row ids [B, L, H] of one shape. It mostly comes again, and to make them takes a good part of the
        time of a small step."""
        rows = self.rows[: shape.numel()]
        self.shape, self.out = shape, rows.view(self.words.dtype).numpy()
        self.result = rows.view(shape[0] * shape[1], -1)


@intrinsic
def prefetch_row(typing_context: Any, table: Any, row: Any) -> Any:
    """Ask for every cache line of a row, to be read once and soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind, row_kind = signature.args
        view = arrayobj.make_array(kind)(context, builder, arguments[0])
        zero, line_bytes, word_bytes = (
            context.get_constant(types.intp, number) for number in (0, CACHE_LINE_BYTES, kind.dtype.bitwidth // 8)
        )
        first = [context.cast(builder, arguments[1], row_kind, types.intp), zero]
        pointer = cgutils.get_item_pointer(context, builder, kind, view, first, wraparound=False)
        byte_pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], function_type)
        to_read, low_locality, data = flag(0), flag(1), flag(1)
        begin = builder.bitcast(pointer, byte_pointer)
        width = builder.mul(builder.extract_value(view.shape, 1), word_bytes)
        with cgutils.for_range_slice(builder, zero, width, line_bytes, inc=True) as (byte, _):
            builder.call(function, [builder.gep(begin, [byte]), to_read, low_locality, data])
        return context.get_dummy_value()

    return types.void(table, row), generate


@Loop
def _gather(table, row_ids, out, first_word):  # type: ignore[no-untyped-def]
    rows, words = table.shape
    outside = 0
    for block in prange((row_ids.size + ROWS_PER_BLOCK - 1) // ROWS_PER_BLOCK):
        first = block * ROWS_PER_BLOCK
        end = min(row_ids.size, first + ROWS_PER_BLOCK)
        for index in range(first, end):
            if index + ROWS_AHEAD < row_ids.size:
                prefetch_row(table, row_ids[index + ROWS_AHEAD])
            row = row_ids[index]
            if 0 <= row < rows:
                source, target = table[row], out[index, first_word:]  # of views, the copy is vectorised
                for word in range(words):
                    target[word] = source[word]
            else:
                outside += 1
    return outside
