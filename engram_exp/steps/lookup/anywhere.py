"""On a GPU its kernel, and the compiled gather where the CPU stands in for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from engram_exp.machine.placement import Placement
from engram_exp.stage import Load
from engram_exp.steps.lookup.gather import GatherLookup
from engram_exp.steps.lookup.order import ReadTimes
from engram_exp.steps.lookup.step import Lookup, sort_bytes
from engram_exp.vocabulary import DEVICE


class AnywhereLookup(Lookup):
    """Reads with `lookup=triton` on a GPU, and with `lookup=gather` on the CPU.

    Args:
        table, max_tokens, columns, placement: as every lookup has them.
        order, sort_from_rows, rows_per_program, warps, programs, read_times, beside: of the GPU's kernel, as
            `TritonLookup` has them.
    """

    anywhere = True

    def __init__(
        self,
        table: Any,
        max_tokens: int,
        columns: int,
        placement: Placement,
        order: str,
        sort_from_rows: int | Literal["auto"],
        rows_per_program: int | Literal["auto"],
        warps: int,
        programs: int | Literal["auto", "multiprocessors", "half_beside"] | None,
        read_times: ReadTimes | None = None,
        beside: bool = False,
    ) -> None:
        self.read: Callable[[torch.Tensor], torch.Tensor]
        if placement.device.type == "cpu":
            self.read = GatherLookup(table, max_tokens, columns, placement)
        else:
            from engram_exp.steps.lookup.triton import TritonLookup  # Triton comes with PyTorch's CUDA builds only

            launch: Any = order, sort_from_rows, rows_per_program, warps, programs, False, read_times, beside
            self.read = TritonLookup(table, max_tokens, columns, placement, *launch)

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """What it makes, and on the GPU row ids in order."""
        sort = sort_bytes(load) if load.stage.side == DEVICE else 0
        return {load.stage.side: load.bytes_of(load.stage.makes) + sort}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H] inside of the table; overwritten by the next call."""
        return self.read(row_ids)
