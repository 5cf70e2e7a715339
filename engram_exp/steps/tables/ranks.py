"""Tables of several ranks: shared out among them, in host or device memory, or one in host memory that all read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from engram_exp.layer.row_format import RowFormat
from engram_exp.layer.shards import Shards
from engram_exp.machine.host_memory import HostMemory
from engram_exp.machine.peer_memory import SharedHostMemory, SymmetricMemory
from engram_exp.machine.placement import Placement
from engram_exp.machine.ranks import Ranks
from engram_exp.steps.tables import fill_spans, parts_in
from engram_exp.vocabulary import DEVICE, HOST

Split = Literal["contiguous", "strided", "rows"]
Parts = tuple[torch.Tensor, ...]


class Shard:
    """This rank's rows of a table.

    Args:
        row_format: how they are stored.
        seed: the contents follow from it and the row id.
        placement: where they lie; pinned if a GPU reads them there.
        ranks: that share the table out.
        shards: who holds which rows.
        reachable: the ranks read each other's rows.
        split: how the table is shared out; `shards` has it from here.
        huge_pages: of host memory: ask for 2 MiB pages.

    parts: of this rank.
    of_ranks: the same of each rank, where they are reachable.
    """

    place: ClassVar[str] = DEVICE
    is_shared_out: ClassVar[bool] = True

    def __init__(
        self,
        row_format: RowFormat,
        seed: int,
        placement: Placement,
        ranks: Ranks,
        shards: Shards,
        reachable: bool,
        split: Split,
        huge_pages: bool = False,
    ) -> None:
        self.row_format, self.seed = row_format, seed
        rows = [shards.rows_of(rank) for rank in range(ranks.size)]
        sizes = [count * row_format.width * row_format.storage_dtype.itemsize for count in rows]
        self.memory: HostMemory | SharedHostMemory | SymmetricMemory | None  # must outlive what reads it
        if reachable:
            self.memory = _shared(sizes, placement.device, ranks, huge_pages)
            of_ranks = self.memory.of_ranks
        else:
            own, self.memory = _alone(sizes[ranks.rank], placement.device, huge_pages)
            of_ranks = [own] * ranks.size
        self.parts = parts_in(of_ranks[ranks.rank], rows[ranks.rank], row_format)
        fill_spans(self.parts, row_format, seed, shards.spans_of(ranks.rank))
        pages = self.memory if isinstance(self.memory, HostMemory | SharedHostMemory) else None
        self.huge_page_share = pages.huge_page_share() if pages else None
        if pages and placement.pinned:
            pages.pin()
        self.of_ranks: list[Parts] = []
        if reachable:
            self.of_ranks = [parts_in(memory, count, row_format) for memory, count in zip(of_ranks, rows, strict=True)]
            if pages is None:
                torch.accelerator.synchronize()
            ranks.agree()  # nobody reads what is not written yet

    def contents(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] of row ids of the whole table, computed anew."""
        return self.row_format.contents(row_ids, self.seed)


def _shared(
    sizes: Sequence[int], device: torch.device, ranks: Ranks, huge_pages: bool
) -> SharedHostMemory | SymmetricMemory:
    """Memory of so many bytes of each rank, which all of them can read."""
    if device.type == "cpu":
        return SharedHostMemory(sizes[ranks.rank], ranks, huge_pages=huge_pages)
    return SymmetricMemory(max(*sizes, 1), ranks, device)


def _alone(size: int, device: torch.device, huge_pages: bool) -> tuple[torch.Tensor, HostMemory | None]:
    """Bytes that this rank alone reads, and the host memory that they lie in, if they do."""
    if device.type == "cpu":
        memory = HostMemory(size, huge_pages=huge_pages)
        return memory.bytes, memory
    return torch.empty(size, dtype=torch.uint8, device=device), None


class HostShard(Shard):
    """The same in host memory, which the rank's GPU can read where it is pinned."""

    place = HOST

    def __init__(
        self,
        row_format: RowFormat,
        seed: int,
        placement: Placement,
        ranks: Ranks,
        shards: Shards,
        reachable: bool,
        split: Split,
        huge_pages: bool,
        pinned: bool,
    ) -> None:
        where = Placement(placement.device, pinned=pinned and placement.pinned)
        super().__init__(row_format, seed, where, ranks, shards, reachable, split, huge_pages)


class SharedTable:
    """One table in the host memory of a node, which every rank there maps, and registers for its GPU.

    Args:
        rows, row_format, seed: as every table has them.
        placement: must be the CPU; it says whether there is a device to pin memory for.
        ranks: each of which writes a share of the rows.
        huge_pages: ask the kernel for 2 MiB pages.
        pinned: register the memory with each rank's driver.
    """

    place: ClassVar[str] = HOST
    is_one_for_all: ClassVar[bool] = True

    def __init__(
        self,
        rows: int,
        row_format: RowFormat,
        seed: int,
        placement: Placement,
        ranks: Ranks,
        huge_pages: bool,
        pinned: bool,
    ) -> None:
        self.row_format, self.seed = row_format, seed
        size = rows * row_format.width * row_format.storage_dtype.itemsize
        shared = SharedHostMemory(size if ranks.local_rank == 0 else 0, ranks, huge_pages=huge_pages)
        self.parts = parts_in(shared.of_ranks[ranks.first_of_host], rows, row_format)
        each = -(-rows // ranks.local_size)
        first = min(rows, each * ranks.local_rank)
        own = tuple(part[first : first + each] for part in self.parts)
        row_format.fill(own, seed, first)
        ranks.agree()  # nobody reads what is not written yet
        self.huge_page_share = shared.huge_page_share()
        if pinned and placement.pinned:
            shared.pin()

    def contents(self, row_ids: torch.Tensor) -> torch.Tensor:
        """The stored rows [*row_ids.shape, width] that a lookup must return, computed anew."""
        return self.row_format.contents(row_ids, self.seed)
