"""What every exchange is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch

from engram_exp.layer.row_format import RowFormat
from engram_exp.layer.shards import Shards
from engram_exp.machine.placement import Placement
from engram_exp.machine.ranks import Ranks
from engram_exp.stage import Load
from engram_exp.steps.lookup.step import Lookup
from engram_exp.steps.lookup.words import WORD_DTYPES

Ids = torch.Tensor  # of rows: of the whole table, or of a share
SENT_DTYPES = tuple(dtype for dtype in WORD_DTYPES if dtype != torch.int16)  # neither Gloo nor NCCL takes that


class Exchange(Lookup):
    """Row ids -> rows as they are stored, exact to the bit, from the ranks that hold them: what a `Lookup` makes of a
    table that is not shared out.

    Stored rows cross as they are, however they are widened behind it. All ranks call it together.

    Args:
        table: this rank's share.
        shards: who holds which rows.
        ranks: that share the table out.
        own_lookup: builds what reads rows of such a share, from it, a number of tokens and one of columns.
        row_format: how rows are stored.
        max_tokens: T, at most.
        columns: H.
        placement: of the output.
        rank_tokens: T of each rank in a whole batch; all ranks ask for the same tokens, or each for its own.
        own_batches: whether they are each rank's own.
    """

    built_from: ClassVar[tuple[str, ...]] = (
        "table", "shards", "ranks", "own_lookup", "row_format", "max_tokens", "columns", "placement", "rank_tokens",
        "own_batches",
    )  # fmt: skip
    needs_own: ClassVar[bool] = False  # ranks must ask for batches of their own
    takes_rows: ClassVar[bool] = False  # a column may lie in several shares
    reads_peers: ClassVar[bool] = False  # each rank reads the others' memory itself

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
    ) -> None:
        self.shards, self.ranks, self.placement, self.own_batches = shards, ranks, placement, own_batches
        self.columns, self.most_tokens, self.rank_tokens = columns, max_tokens, list(rank_tokens)
        row_bytes = row_format.width * row_format.storage_dtype.itemsize
        self.words = next(dtype for dtype in SENT_DTYPES if row_bytes % dtype.itemsize == 0)
        self.row_words = row_bytes // self.words.itemsize
        self.rows = placement.empty(max_tokens * columns, row_format.width, dtype=row_format.storage_dtype)
        self.own_columns = shards.columns_of(ranks.rank)
        self.shifts = torch.from_numpy(shards.shifts()).to(placement.device)
        self.buffers: dict[str, torch.Tensor] = {}
        self.build(table, own_lookup)

    def build(self, table: Any, own_lookup: Callable[[Any, int, int], Any]) -> None:
        """Build what reads this rank's rows, for all who ask."""
        asked = self.most_asked
        self.read = (
            own_lookup(table, asked, self.shards.number_of_columns(self.ranks.rank)) if len(table.parts[0]) else None
        )

    @classmethod
    def keeps(cls, load: Load) -> dict[str, int]:
        """Rows as they are handed on, as they arrive, and as they are read here for all who ask."""
        asking = load.among.asking
        rows = load.bytes_of(load.stage.makes)
        return {load.stage.side: 2 * rows + asking * (rows // load.among.ranks + load.bytes_of(load.stage.needs))}

    @property
    def most_asked(self) -> int:
        """Tokens that rows of this rank's are read for, at most."""
        return sum(self.rank_tokens) if self.own_batches else self.most_tokens

    def tokens_of_ranks(self, own: int) -> list[int]:
        """Tokens that each rank asks for in a call, of so many of this one.

        Raises:
            ValueError: a part of a batch where batches differ in size: nobody knows the parts of the others.
        """
        if own == self.rank_tokens[self.ranks.rank]:
            return self.rank_tokens
        if len(set(self.rank_tokens)) > 1:
            raise ValueError(f"{own} tokens of {self.rank_tokens}: batches of different sizes come whole")
        return [own] * self.ranks.size

    def buffer(self, name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        """A kept buffer [size]; as large as it has been needed so far."""
        kept = self.buffers.get(name)
        if kept is None or kept.numel() < size:
            kept = self.buffers[name] = Placement(self.placement.device).empty(size, dtype=dtype)
        return kept[:size]

    def own_ids(self, row_ids: Ids, name: str = "own_ids") -> Ids:
        """Ids [T, H of this rank] within this rank's share, of those of the whole table [T, H]."""
        return self.ids_of(row_ids, self.own_columns, name)

    def ids_of(self, row_ids: Ids, columns: slice, name: str) -> Ids:
        """Ids within the share of whoever has these columns."""
        found = row_ids[:, columns]
        kept = self.buffer(name, found.numel(), row_ids.dtype).view(found.shape)
        return torch.add(found, self.shifts_as(row_ids.dtype)[columns], out=kept)

    def shifts_as(self, dtype: torch.dtype) -> torch.Tensor:
        """What makes a row id one of its share's own, [H]."""
        if self.shifts.dtype != dtype:
            self.shifts = self.shifts.to(dtype)
        return self.shifts

    def read_own(self, ids: Ids) -> torch.Tensor:
        """Rows [T, H of this rank, words] of ids within this rank's share."""
        if self.read is None or not ids.numel():
            return self.rows.new_empty(0).view(self.words).view(*ids.shape, self.row_words)
        return self.read(ids.unsqueeze(0)).view(-1).view(self.words).view(*ids.shape, self.row_words)

    def whole(self, tokens: int) -> torch.Tensor:
        """What this rank hands on, [T, H, words]."""
        rows = self.rows[: tokens * self.columns].view(-1).view(self.words)
        return rows.view(tokens, self.columns, self.row_words)

    def handed_on(self, tokens: int) -> torch.Tensor:
        """The same as a lookup returns it: stored rows [T, H * width]; overwritten by the next call."""
        return self.rows[: tokens * self.columns].view(tokens, self.columns * self.rows.shape[1])


def begins(sizes: Sequence[int]) -> list[slice]:
    """Where pieces of these sizes lie, one behind the other."""
    return [slice(*pair) for pair in pairwise([0, *accumulate(sizes)])]


def flat(row_ids: torch.Tensor) -> Ids:
    """Row ids [B, L, H] as [T, H]."""
    return row_ids.reshape(-1, row_ids.shape[-1])
