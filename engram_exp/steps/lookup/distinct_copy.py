"""Rows that are asked for twice are gathered and copied once, by the CPU, and put in place by the GPU."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from numba import get_num_threads

from engram_exp.machine.placement import Placement
from engram_exp.stage import Load
from engram_exp.steps.lookup.distinct_numba import DistinctFinder
from engram_exp.steps.lookup.gather import TOGETHER_FROM_ROWS, GatherLookup
from engram_exp.steps.lookup.near_or_far_triton import gather_near_or_far
from engram_exp.steps.lookup.numbering import Numbering, ReadBack
from engram_exp.steps.lookup.step import Lookup, sort_bytes
from engram_exp.steps.lookup.words import Part, Words
from engram_exp.steps.loops import Threads, threads_for
from engram_exp.steps.tables.host import HostTable
from engram_exp.vocabulary import AUTO, DEVICE, HOST

ROWS, WARPS = 32, 4  # of a program that puts rows in place
NUMBER_BYTES = 4


class DistinctCopyLookup(Lookup):
    """Takes row ids on the host, gathers each distinct row once, copies those and what each row id asks for of them,
    and expands them on the device.

    Args:
        table: in host memory.
        max_tokens: T, at most.
        columns: H.
        placement: the GPU.
        find: where it finds out which are distinct: host: a hash table of each column; device: the row ids are copied
            there, sorted, and the distinct ones are read back, for which the host waits.
        threads: of the CPU, as `GatherLookup` has them; auto: by all row ids.
    """

    on_both: ClassVar[bool] = True
    counts_rows = True

    def __init__(
        self,
        table: HostTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        find: Literal["host", "device"],
        threads: Threads = AUTO,
    ) -> None:
        placement.require_triton("lookup")
        most, row_format, self.words = max_tokens * columns, table.row_format, Words(table.row_format)
        self.find, self.on_device = find, Placement(placement.device)
        on_host = Placement(torch.device("cpu"), pinned=placement.device.type != "cpu")
        width, dtype = row_format.width, row_format.storage_dtype
        self.rows = placement.empty(most, width, dtype=dtype)
        self.copied = self.on_device.empty(most, width, dtype=dtype)
        threads = threads_for(threads, most, TOGETHER_FROM_ROWS) or get_num_threads()
        self.gather = GatherLookup(table, most, 1, on_host, threads)
        row_id_dtype = torch.int32 if len(table.parts[0]) <= 2**31 else torch.int64
        if find == DEVICE:
            self.row_ids = self.on_device.empty(most, dtype=row_id_dtype)
            self.read_back = ReadBack(most, row_id_dtype, placement.device)
        else:
            self.finder = DistinctFinder(max_tokens, columns, torch.empty(0, dtype=row_id_dtype).numpy().dtype, threads)
            self.made = on_host.empty(most + 1, dtype=torch.int32)  # numbers, and behind them the last of them
            self.sent = self.on_device.empty(most + 1, dtype=torch.int32)
        self.counts = torch.zeros(2, dtype=torch.int64, device=placement.device)

    @classmethod
    def bytes_moved(cls, load: Load) -> int:
        """Row ids and distinct rows read, rows written."""
        repeated = (1 - load.distinct_rows) * load.geometry.stored_bytes(load.tokens)
        return super().bytes_moved(load) - round(repeated)

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Distinct rows are read by the host and cross the link; all are written on the device."""
        distinct = load.distinct_rows * load.row_ids
        return {
            "host rows": distinct,
            "link": distinct * load.row_bytes,
            load.memory: load.bytes_of(load.stage.makes),
        }

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Rows on the device as they are copied and as asked for, and on the host as they are gathered; what finds the
        distinct ones."""
        rows, geometry = load.bytes_of(load.stage.makes), load.geometry
        if load.options.get("find") == DEVICE:
            row_ids = load.bytes_of(load.stage.needs)
            finding = Numbering.bytes(load.row_ids, geometry.row_id_bytes) + sort_bytes(load)
            return {load.stage.side: 2 * rows + row_ids + finding, HOST: rows + row_ids}
        numbers = NUMBER_BYTES * (load.row_ids + 1)
        finding = DistinctFinder.bytes(load.tokens, geometry.columns, geometry.row_id_bytes)
        return {load.stage.side: 2 * rows + numbers, HOST: rows + numbers + finding}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H] on the host; overwritten by the next call, before which what
        is under way on the device must have ended.

        Raises:
            IndexError: a row id outside the table.
        """
        count, word = row_ids.numel(), self.words.dtype
        distinct, numbers, last = self._found(row_ids.flatten(0, 1))
        copied = self.copied[: len(distinct)]
        copied.copy_(self.gather(distinct.view(1, -1, 1)).view_as(copied), non_blocking=True)
        near, out = copied.view(word), self.rows[:count]
        gather_near_or_far(
            [Part(near, 0)], near, numbers, numbers, out.view(word), self.counts, ROWS, WARPS, last=last
        )  # all of them are near
        return out.view(row_ids.shape[0] * row_ids.shape[1], -1)

    def _found(self, row_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of row ids [T, H]: the distinct ones on the host, and on the device which of them each is [T * H], and the
        number [1] of the last."""
        count = row_ids.numel()
        if self.find == HOST:
            made, sent = self.made[: count + 1], self.sent[: count + 1]
            distinct = torch.from_numpy(self.finder(row_ids.numpy(), made[:count].view(row_ids.shape).numpy()))
            made[count] = len(distinct) - 1
            sent.copy_(made, non_blocking=True)
            return distinct, sent[:count], sent[count:]
        on_device = self.row_ids[:count].copy_(row_ids.view(-1), non_blocking=True)
        return *self.read_back(on_device), self.read_back.numbering.last
