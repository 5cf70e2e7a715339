"""The CPU gathers a share of the rows and copies them, while the GPU reads the others through the link."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from numba import get_num_threads

from engram_exp.errors import ConfigError
from engram_exp.machine.placement import Placement, kept_stream
from engram_exp.stage import Load
from engram_exp.steps.lookup.gather import TOGETHER_FROM_ROWS, GatherLookup
from engram_exp.steps.lookup.order import ReadTimes
from engram_exp.steps.lookup.step import Lookup, crossing_rows, sort_bytes
from engram_exp.steps.lookup.triton import TritonLookup
from engram_exp.steps.loops import Threads, threads_for
from engram_exp.steps.tables.host import HostTable
from engram_exp.vocabulary import AUTO, HOST


class BothLookup(Lookup):
    """Takes row ids on the host and leaves their rows on the device, the GPU's in front of the CPU's.

    The two ways are bound by different things: the GPU's reads by address translation, the CPU's by its cores.

    Args:
        table: in pinned host memory.
        max_tokens: T, at most.
        columns: H.
        placement: the GPU.
        share: of the rows, that the CPU gathers.
        chunks: that it gathers them in: each is copied while it gathers the next.
        order, sort_from_rows, rows_per_program, warps, programs, read_times: of the GPU's kernel, as `TritonLookup` has
            them.
        threads: of the CPU, as `GatherLookup` has them; auto: by all rows that it gathers, not by those of a chunk.

    Raises:
        ConfigError: a share or a number of chunks out of range, or as `TritonLookup`.
        SkippedError: as `TritonLookup`.
    """

    on_both: ClassVar[bool] = True

    def __init__(
        self,
        table: HostTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        share: float,
        chunks: int,
        order: str,
        sort_from_rows: int | Literal["auto"],
        rows_per_program: int | Literal["auto"],
        warps: int,
        programs: int | Literal["auto", "multiprocessors"] | None,
        threads: Threads = AUTO,
        read_times: ReadTimes | None = None,
    ) -> None:
        if not 0 < share < 1:
            remedy = "must be above 0 and below 1; strategy=uva and strategy=kv_on_gpu are the two ends"
            raise ConfigError("lookup.share", share, remedy)
        if chunks < 1:
            raise ConfigError("lookup.chunks", chunks, "must be at least 1")
        most, row_format = max_tokens * columns, table.row_format
        self.share, self.chunks = share, chunks
        self.rows = placement.empty(most, row_format.width, dtype=row_format.storage_dtype)
        self.row_ids: torch.Tensor | None = None  # those that the GPU reads
        launch = order, sort_from_rows, rows_per_program, warps, programs
        into = Placement(placement.device, buffer=self.rows)
        self.read = TritonLookup(table, most, 1, into, *launch, read_times=read_times, beside=True)  # the copies
        has_link = placement.device.type != "cpu"
        on_host = Placement(torch.device("cpu"), pinned=has_link)
        on_cpu = self._rows_of_cpu(most)
        of_chunk = max(1, -(-on_cpu // chunks))
        threads = threads_for(threads, on_cpu, TOGETHER_FROM_ROWS) or get_num_threads()
        self.gathers = [GatherLookup(table, of_chunk, 1, on_host, threads) for _ in range(chunks)]
        self.copying: Any = kept_stream(placement.device.type, "copies of lookup=both") if has_link else nullcontext()

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """All distinct rows cross one link; they are written on the device."""
        return {
            "link rows": crossing_rows(load) * load.row_bytes,
            load.memory: load.bytes_of(load.stage.makes),
        }

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Rows on the device, row ids there as asked for and in order; on the host at most all rows once more."""
        rows, row_ids = load.bytes_of(load.stage.makes), load.bytes_of(load.stage.needs)
        return {load.stage.side: rows + row_ids + sort_bytes(load), HOST: rows}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H] on the host; overwritten by the next call, before which what
        is under way on the device must have ended.

        Raises:
            IndexError: a row id of the CPU's outside the table.
        """
        flat, tokens = row_ids.view(-1), row_ids.shape[0] * row_ids.shape[1]
        rows = self.rows[: len(flat)]
        on_gpu = len(flat) - self._rows_of_cpu(len(flat))
        self.copying_waits()
        if on_gpu:
            self.read(self._on_device(flat[:on_gpu]).view(1, -1, 1))
        if on_gpu < len(flat):
            self._copy(flat[on_gpu:], rows[on_gpu:])
        self.device_waits()
        return rows.view(tokens, -1)

    def copying_waits(self) -> None:
        """The copies wait until what stood in their place has been read."""
        if isinstance(self.copying, torch.Stream):
            self.copying.wait_stream(torch.accelerator.current_stream())

    def device_waits(self) -> None:
        """The device waits until the CPU's rows are there."""
        if isinstance(self.copying, torch.Stream):
            torch.accelerator.current_stream().wait_stream(self.copying)

    def _rows_of_cpu(self, rows: int) -> int:
        return round(self.share * rows)

    def _copy(self, row_ids: torch.Tensor, rows: torch.Tensor) -> None:
        """Gather and send the rows of some row ids."""
        with self.copying:
            pieces = row_ids.chunk(self.chunks), rows.chunk(self.chunks)
            for gather, ids, target in zip(self.gathers, *pieces, strict=False):
                target.copy_(gather(ids.view(1, -1, 1)), non_blocking=True)

    def _on_device(self, row_ids: torch.Tensor) -> torch.Tensor:
        if self.row_ids is None:
            self.row_ids = row_ids.new_empty(len(self.rows), device=self.rows.device)
        return self.row_ids[: len(row_ids)].copy_(row_ids, non_blocking=True)
