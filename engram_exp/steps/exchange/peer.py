"""Every rank reads the memory of those who hold its rows itself, and nobody waits for anybody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from engram_exp.layer.row_format import RowFormat
from engram_exp.layer.shards import Shards
from engram_exp.machine.placement import Placement
from engram_exp.machine.ranks import Ranks
from engram_exp.stage import Load
from engram_exp.steps.exchange.step import Exchange, flat
from engram_exp.vocabulary import PEER_ROWS


class PeerExchange(Exchange):
    """On GPUs one kernel that reads all shares, over NVLink or through their own link; where the CPU stands in for
    them, a gather from each share in the ranks' shared memory.

    Args:
        table, shards, ranks, own_lookup, row_format, max_tokens, columns, placement, rank_tokens, own_batches: as every
            exchange has them; of the table, the shares of all ranks.
        rows_per_program, warps, programs: of the kernel, as `TritonLookup` has them.
    """

    takes_rows = True
    reads_peers = True

    def __init__(
        self,
        table: Any,
        shards: Shards,
        ranks: Ranks,
        own_lookup: Callable[[Any, int, int], Any],
        row_format: RowFormat,
        max_tokens: int,
        columns: int,
        placement: Placement,
        rank_tokens: Sequence[int],
        own_batches: bool,
        rows_per_program: int,
        warps: int,
        programs: int | None,
    ) -> None:
        self.launch = rows_per_program, warps, programs
        shared = table, shards, ranks, own_lookup, row_format, max_tokens, columns, placement
        super().__init__(*shared, rank_tokens, own_batches)

    def build(self, table: Any, own_lookup: Callable[[Any, int, int], Any]) -> None:
        """Build what reads the shares of all ranks."""
        if self.placement.device.type != "cpu":
            from engram_exp.steps.exchange.peer_triton import PeerKernel  # Triton comes with PyTorch's CUDA builds only

            self.kernel: PeerKernel | None = PeerKernel(table, self.shards, self.rows, *self.launch)
            return
        self.kernel = None
        numbers = map(self.shards.number_of_columns, range(self.ranks.size))
        self.readers = [
            own_lookup(_Borrowed(parts, table), self.most_tokens, number) if len(parts[0]) else None
            for parts, number in zip(table.of_ranks, numbers, strict=True)
        ]

    @classmethod
    def work(cls, load: Load) -> dict[str, float]:
        """Rows of others are read in their memory, and all are written here."""
        away, rows = 1 - 1 / load.among.ranks, load.geometry.stored_bytes(load.tokens)
        return {PEER_ROWS: away * load.row_ids, load.memory: rows * (2 - away)}

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Rows as they are handed on."""
        return {load.stage.side: load.bytes_of(load.stage.makes)}

    def __call__(self, row_ids: torch.Tensor) -> torch.Tensor:
        """Stored rows [T, H * width] of row ids [B, L, H]; overwritten by the next call."""
        ids = flat(row_ids)
        if self.kernel:
            self.kernel(ids)
        elif self.shards.by_rows:
            self._read_stretches(ids)
        else:
            whole = self.whole(len(ids))
            for rank, read in enumerate(self.readers):
                if read is not None and len(ids):
                    columns = self.shards.columns_of(rank)
                    rows = read(self.ids_of(ids, columns, "own_ids").unsqueeze(0))
                    whole[:, columns] = rows.view(-1).view(self.words).view(len(ids), -1, self.row_words)
        return self.handed_on(len(ids))

    def _read_stretches(self, ids: torch.Tensor) -> None:
        whole = self.whole(len(ids)).view(-1, self.row_words)
        owners = ids.reshape(-1) // self.shards.stretch
        for rank, read in enumerate(self.readers):
            (places,) = torch.nonzero(owners == rank, as_tuple=True)
            if read is not None and len(places):
                found = ids.reshape(-1)[places] - rank * self.shards.stretch
                whole[places] = read(found.view(1, -1, 1)).view(-1).view(self.words).view(-1, self.row_words)


class _Borrowed:
    """The share of a rank, as a lookup takes tables."""

    def __init__(self, parts: tuple[torch.Tensor, ...], table: Any) -> None:
        self.parts, self.row_format, self.place = parts, table.row_format, table.place
