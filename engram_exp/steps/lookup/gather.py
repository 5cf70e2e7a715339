"""A compiled gather into a kept buffer that asks for rows before it needs them."""

from __future__ import annotations

from typing import Any

import torch
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from engram_exp.machine.placement import Placement
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.lookup.words import Words
from engram_exp.steps.tables.device import DeviceTable
from engram_exp.steps.tables.host import HostTable

ROWS_AHEAD = 12  # random rows come from memory in about the time that copying so many takes
ROWS_PER_BLOCK = 512  # of one thread at a time
CACHE_LINE_BYTES = 64


class GatherLookup(Lookup):
    """Copies rows on all CPU threads into a buffer that is allocated once, pinned if the placement says so."""

    def __init__(self, table: HostTable | DeviceTable, max_tokens: int, columns: int, placement: Placement) -> None:
        placement.require("cpu", "lookup")
        row_format = table.row_format
        self.rows = placement.empty(max_tokens * columns, row_format.width, dtype=row_format.storage_dtype)
        self.words = Words(row_format)
        self.tables = [part.view(self.words.dtype).numpy() for part in table.parts]

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H]; overwritten by the next call.

        Raises:
            IndexError: a row id outside the table.
        """
        rows = self.rows[: row_ids.numel()]
        flat, out = row_ids.flatten().numpy(), rows.view(self.words.dtype).numpy()
        for table, first_word in zip(self.tables, self.words.first, strict=True):
            outside = _gather(table, flat, out, first_word)
            if outside:
                raise IndexError(f"{outside} row ids are outside of 0 to {len(table) - 1}")
        return rows.view(row_ids.shape[0] * row_ids.shape[1], -1)


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


@njit(inline="always")
def prefetch_row(table, row):  # type: ignore[no-untyped-def]
    """Ask for a row of words before it is needed."""
    for word in range(0, table.shape[1], CACHE_LINE_BYTES // table.itemsize):
        _prefetch(table, row, word)


@njit(parallel=True, cache=True, error_model="numpy")
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
                for word in range(words):
                    out[index, first_word + word] = table[row, word]
            else:
                outside += 1
    return outside
