"""A compiled gather into a kept buffer that asks for rows before it needs them."""

from __future__ import annotations

from typing import Any

import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from engram_exp.placement import Placement
from engram_exp.tables.host import HostTable

ROWS_AHEAD = 12  # random rows come from memory in about the time that copying so many takes
ROWS_PER_BLOCK = 512  # of one thread at a time
CACHE_LINE_BYTES = 64
WORDS = (torch.int64, torch.int32, torch.int16)  # rows are copied in the widest of these that fits


class GatherLookup:
    """Copies rows on all CPU threads into a buffer that is allocated once, pinned if the placement says so."""

    def __init__(self, table: HostTable, max_tokens: int, columns: int, placement: Placement) -> None:
        placement.require("cpu", "lookup=gather")
        self.rows = placement.empty(max_tokens * columns, table.storage.shape[1], dtype=table.storage.dtype)
        row_bytes = self.rows.shape[1] * self.rows.itemsize
        self.word = next(word for word in WORDS if row_bytes % word.itemsize == 0)
        self.table_words = table.storage.view(self.word).numpy()

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings [T, H * D] of row ids [B, L, H]; overwritten by the next call.

        Raises:
            IndexError: a row id outside the table.
        """
        out = self.rows[: row_ids.numel()]
        outside = _gather(self.table_words, row_ids.flatten().numpy(), out.view(self.word).numpy())
        if outside:
            raise IndexError(f"{outside} row ids are outside of 0 to {len(self.table_words) - 1}")
        return out.view(row_ids.shape[0] * row_ids.shape[1], -1)


@intrinsic
def _prefetch(typing_context: Any, array: Any, row: Any, word: Any) -> Any:
    """Ask for the cache line of array[row, word], to be read once and soon."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = signature.args[0]
        indices = [context.cast(builder, arguments[i], signature.args[i], types.intp) for i in (1, 2)]
        view = arrayobj.make_array(kind)(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, kind, view, indices, wraparound=False)
        byte_pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], function_type)
        to_read, low_locality, data = flag(0), flag(1), flag(1)
        builder.call(function, [builder.bitcast(pointer, byte_pointer), to_read, low_locality, data])
        return context.get_dummy_value()

    return types.void(array, row, word), generate


@njit(parallel=True, cache=True, error_model="numpy")
def _gather(table, row_ids, out):  # type: ignore[no-untyped-def]
    rows, words = table.shape
    words_per_line = CACHE_LINE_BYTES // table.itemsize
    outside = 0
    for block in prange((row_ids.size + ROWS_PER_BLOCK - 1) // ROWS_PER_BLOCK):
        first = block * ROWS_PER_BLOCK
        end = min(row_ids.size, first + ROWS_PER_BLOCK)
        for index in range(first, end):
            if index + ROWS_AHEAD < row_ids.size:
                for word in range(0, words, words_per_line):
                    _prefetch(table, row_ids[index + ROWS_AHEAD], word)
            row = row_ids[index]
            if 0 <= row < rows:
                for word in range(words):
                    out[index, word] = table[row, word]
            else:
                outside += 1
    return outside
