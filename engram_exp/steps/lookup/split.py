"""Rows of a table in host memory, some of which lie in device memory, too: the same ones, whatever is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Literal

import torch

from engram_exp.errors import ConfigError
from engram_exp.layer.hash_plan import HashPlan
from engram_exp.machine.placement import Placement
from engram_exp.stage import Load
from engram_exp.steps.lookup.near_or_far_triton import gather_near_or_far
from engram_exp.steps.lookup.order import ReadTimes
from engram_exp.steps.lookup.step import crossing_rows
from engram_exp.steps.lookup.triton import TritonLookup
from engram_exp.steps.lookup.words import Words
from engram_exp.steps.tables.host import HostTable
from engram_exp.vocabulary import AS_ASKED, HEADS, WARM

ROWS_AT_A_TIME = 2**20  # that are copied


class SplitLookup(TritonLookup):
    """Copies rows from device memory or, where they are not there, from host memory through the link.

    Args:
        plan: of the hash: which rows its columns have.
        gb: of rows in device memory, 10^9 bytes at most.
        policy: which: heads: the first rows of every column, the same share of each; columns: whole ones, those of the
            longest n-grams first, whose rows repeat least.
        table, max_tokens, columns, placement, order, sort_from_rows, rows_per_program, warps, programs, read_times,
            beside: as `TritonLookup` has them.

    Raises:
        ConfigError: as `near_rows` and `TritonLookup`.
        SkippedError: as `TritonLookup`.
    """

    counts_rows = True
    keeps_rows = True
    state: ClassVar[str] = WARM

    def __init__(
        self,
        table: HostTable,
        max_tokens: int,
        columns: int,
        placement: Placement,
        plan: HashPlan,
        gb: float,
        policy: Literal["heads", "columns"],
        order: str,
        sort_from_rows: int | Literal["auto"],
        rows_per_program: int | Literal["auto"],
        warps: int,
        programs: int | Literal["auto", "multiprocessors", "half_beside"] | None,
        read_times: ReadTimes | None = None,
        beside: bool = False,
    ) -> None:
        launch = order, sort_from_rows, rows_per_program, warps, programs
        super().__init__(table, max_tokens, columns, placement, *launch, read_times=read_times, beside=beside)
        words = Words(table.row_format)
        self.parts, self.counts = words.parts_of(table), torch.zeros(2, dtype=torch.int64, device=placement.device)
        numbers = near_rows({"gb": gb, "policy": policy}, plan.moduli.tolist(), self.row_bytes)
        firsts = [0, *accumulate(numbers)]
        self.near = placement.empty(firsts.pop(), words.per_row, dtype=words.dtype)
        self.columns = list(zip(plan.offsets.tolist(), numbers, firsts, strict=True))
        self.slots = torch.tensor(self.columns, device=placement.device).T.contiguous()
        for first_row, first, count in self._pieces():
            for array, first_word in self.parts:
                target = self.near[first : first + count, first_word : first_word + array.shape[1]]
                target.copy_(array[first_row : first_row + count])

    @classmethod
    def refuse(cls, load: Load, free_bytes: int) -> None:
        """Refuse more rows in device memory than there is memory, or than there are.

        Raises:
            ConfigError: naming the key.
        """
        gb, near_bytes = load.options["gb"], _near_bytes(load)
        if near_bytes > free_bytes:
            remedy = f"must be below {free_bytes / 1e9:.3g}: no more device memory is free"
            raise ConfigError("lookup.gb", gb, remedy)

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """As any lookup through the link, without the rows that do not cross it: no more than all uses of those."""
        near = _near_bytes(load) / load.geometry.table_bytes * load.row_ids
        crossing = max(0.0, crossing_rows(load) - near)
        return {**super().work(load), "link rows": crossing * load.row_bytes, "link row reads": crossing}

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """What `TritonLookup` does, and the rows in device memory."""
        return {place: kept + _near_bytes(load) for place, kept in super().keeps(load).items()}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H] inside of the table; overwritten by the next call."""
        flat = row_ids.view(-1)
        how = self.reading(rows=len(flat))
        ordered, places = self._in_order(flat, how.order)
        gather_near_or_far(
            self.parts, self.near, self.slots, ordered, self.out[: len(flat)], self.counts, how.rows_per_program,
            self.warps, programs=how.programs, places=None if how.order == AS_ASKED else places,
        )  # fmt: skip
        return self.rows[: len(flat)].view(row_ids.shape[0] * row_ids.shape[1], -1)

    def kept(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """What lies in device memory, some at a time: row ids [N] and their rows [N, width], on the CPU."""
        for first_row, first, count in self._pieces():
            rows = self.near[first : first + count].view(self.rows.dtype)
            yield torch.arange(first_row, first_row + count), rows.cpu()

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        """Rows that follow each other: the first in the table, the first copy, and how many."""
        for first_row, rows, first in self.columns:
            for some in range(0, rows, ROWS_AT_A_TIME):
                yield first_row + some, first + some, min(ROWS_AT_A_TIME, rows - some)


def near_rows(options: Mapping[str, Any], column_rows: Sequence[int], row_bytes: int) -> list[int]:
    """How many rows of each column lie in device memory.

    Args:
        options: gb and policy among them.
        column_rows: of the table.
        row_bytes: of a stored row.

    Raises:
        ConfigError: there is room for none, or for all.
    """
    gb, policy, rows = options["gb"], options["policy"], sum(column_rows)
    table_gb = rows * row_bytes / 1e9
    if not gb < table_gb:
        raise ConfigError("lookup.gb", gb, f"must be below {table_gb:.3g}, the whole table: strategy=device")
    room = int(max(gb, 0) * 1e9 // row_bytes)
    if policy == HEADS:
        found = [of_column * room // rows for of_column in column_rows]
    else:
        behind = list(accumulate(reversed(column_rows)))[::-1]  # each column, and all behind it
        found = [of_column if all_rows <= room else 0 for of_column, all_rows in zip(column_rows, behind, strict=True)]
    if not any(found):
        least = row_bytes * (column_rows[-1] if policy != HEADS else -(-rows // max(column_rows)))
        raise ConfigError("lookup.gb", gb, f"must be at least {least / 1e9:.3g}, for what policy={policy} takes first")
    return found


def _near_bytes(load: Load) -> int:
    return sum(near_rows(load.options, load.geometry.head_rows, load.row_bytes)) * load.row_bytes
